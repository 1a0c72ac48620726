import { createRequire } from "node:module";

import { defineConfig } from "hardhat/config";

const require = createRequire(import.meta.url);

export default defineConfig({
  solidity: {
    // The compiler comes from npm, so that a build needs no other host.
    splitTestsCompilation: true,
    version: "0.8.37",
    path: require.resolve("solc/soljson.js"),
    settings: {
      evmVersion: "cancun",
      optimizer: { enabled: true, runs: 10_000 },
      // No hash of the sources in the bytecode: a changed comment must not change what is deployed.
      metadata: { bytecodeHash: "none" },
    },
  },
  test: {
    solidity: {
      fuzz: { runs: 128, seed: "0xdf1" },
      invariant: { runs: 24, depth: 100 },
    },
  },
});
