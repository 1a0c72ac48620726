// js-ipfs with its HTTP RPC, the one Kubo has, on a port of the system's choice and without any network.
//
//   node server.mjs REPO     prints the API's multiaddr, then serves until its standard input ends
import { create } from "ipfs-core";
import { HttpApi } from "ipfs-http-server";

process.stdin.resume().on("end", () => process.exit()); // so that it never outlives who started it

const ipfs = await create({
  repo: process.argv[2],
  silent: true,
  preload: { enabled: false },
  ipnsPubsub: false,
  config: {
    Addresses: { Swarm: [], API: "/ip4/127.0.0.1/tcp/0", Gateway: "" },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Routing: { Type: "none" },
  },
});
const api = new HttpApi(ipfs);
await api.start();
console.log(String(api._apiServers[0].info.ma));
