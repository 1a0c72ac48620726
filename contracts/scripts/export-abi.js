// Writes ABI and bytecode of each deployable contract to where Python finds them. With --check, which npm passes
// as DFL_CHECK=1 because `hardhat run` takes no arguments for a script, it only says whether they are up to date.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import hre from "hardhat";

const CONTRACTS = ["VnxToken", "NodeRegistry", "TrainingJobs", "RewardDistributor"];
const FOLDER = join(hre.config.paths.root, "ledger", "dfl_ledger", "abi");

async function exported(contractName) {
  const { abi, bytecode } = await hre.artifacts.readArtifact(contractName);
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

await mkdir(FOLDER, { recursive: true });
const stale = [];
for (const contractName of CONTRACTS) {
  const path = join(FOLDER, `${contractName}.json`);
  const text = await exported(contractName);
  if (text === (await committed(path))) continue;
  stale.push(contractName);
  if (process.env.DFL_CHECK !== "1") await writeFile(path, text);
}

if (process.env.DFL_CHECK !== "1") {
  console.log(stale.length ? `written: ${stale.join(", ")}` : "unchanged");
} else if (stale.length) {
  console.error(`ABI or bytecode differs from the build: ${stale.join(", ")}. Run: npm run abi`);
  process.exitCode = 1;
} else {
  console.log("ABI and bytecode match the build");
}
