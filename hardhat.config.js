import { createRequire } from "node:module";

import { defineConfig } from "hardhat/config";

const require = createRequire(import.meta.url);

// The compiler comes from npm, so that a build needs no other host.
function solc(runs) {
  return {
    version: "0.8.37",
    path: require.resolve("solc/soljson.js"),
    settings: {
      evmVersion: "cancun",
      optimizer: { enabled: true, runs },
      // No hash of the sources in the bytecode: a changed comment must not change what is deployed.
      metadata: { bytecodeHash: "none" },
    },
  };
}

export default defineConfig({
  solidity: {
    splitTestsCompilation: true,
    // More runs would make the larger contracts larger than a chain takes; claims, which everybody sends, get them.
    compilers: [solc(200)],
    overrides: { "contracts/RewardDistributor.sol": solc(10_000), "contracts/VnxToken.sol": solc(10_000) },
  },
  test: {
    solidity: {
      fuzz: { runs: 128, seed: "0xdf1" },
      invariant: { runs: 24, depth: 100 },
    },
  },
});
