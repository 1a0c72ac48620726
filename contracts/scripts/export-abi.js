// Writes ABI and bytecode of each deployable contract to where Python finds them. With --check it writes nothing and
// fails where what lies there differs from the build.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import hre from "hardhat";

// What one address answers may be the code of several contracts, the first of which is deployed.
const CONTRACTS = {
  VnxToken: [],
  NodeRegistry: [],
  AssetRegistry: [],
  TrainingJobs: ["JobDesk"],
  ScoreBoard: [],
  RewardDistributor: [],
};
const CHECK = process.argv.includes("--check");
const FOLDER = join(hre.config.paths.root, "ledger", "dfl_ledger", "abi");

async function exported(contractName) {
  const { abi: own, bytecode } = await hre.artifacts.readArtifact(contractName);
  const abi = [...own];
  const known = new Set(own.map((item) => JSON.stringify(item)));
  for (const name of CONTRACTS[contractName]) {
    const { abi: more } = await hre.artifacts.readArtifact(name);
    abi.push(...more.filter((item) => item.type !== "constructor" && !known.has(JSON.stringify(item))));
  }
  return `${JSON.stringify({ contractName, abi, bytecode }, null, 2)}\n`;
}

async function committed(path) {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (error.code === "ENOENT") return "";
    throw error;
  }
}

await hre.tasks.getTask("build").run({ noTests: true, quiet: true });
await mkdir(FOLDER, { recursive: true });
const stale = [];
for (const contractName of Object.keys(CONTRACTS)) {
  const path = join(FOLDER, `${contractName}.json`);
  const text = await exported(contractName);
  if (text === (await committed(path))) continue;
  stale.push(contractName);
  if (!CHECK) await writeFile(path, text);
}

if (!CHECK) {
  console.log(stale.length ? `written: ${stale.join(", ")}` : "unchanged");
} else if (stale.length) {
  console.error(`ABI or bytecode differs from the build: ${stale.join(", ")}. Run: npm run abi`);
  process.exitCode = 1;
} else {
  console.log("ABI and bytecode match the build");
}
