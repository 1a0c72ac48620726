// Runs the Solidity tests under forge, which counts branches too (Hardhat counts lines and statements), and fails below
// LEAST percent of all lines or of all branches of the contracts. What no test reaches is listed.
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const LEAST = 95;
const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const LCOV = join(ROOT, "cache", "coverage", "lcov.info");

// -- the run ------------------------------------------------------------------------------------------------------

mkdirSync(dirname(LCOV), { recursive: true });
const forge = spawnSync(
  join(ROOT, "contracts", "analysis", "bin", "forge"),
  [
    ...["coverage", "--report", "lcov", "--report-file", LCOV, "--no-match-coverage", "contracts/test|node_modules"],
    // Ten thousand cases of what is covered anyway.
    ...["--no-match-contract", "VectorsTest"],
  ],
  { cwd: ROOT, env: { ...process.env, FOUNDRY_PROFILE: "coverage" }, encoding: "utf8", maxBuffer: 2 ** 28 },
);
if (forge.status !== 0) {
  console.error(`${forge.stdout}\n${forge.stderr}\nThe tests did not pass under forge`, forge.error ?? "");
  process.exit(1);
}

// -- its report ---------------------------------------------------------------------------------------------------

// Records of geninfo: DA is line, hits; BRDA is line, block, branch, hits, where "-" stands for none.
const files = [];
for (const record of readFileSync(LCOV, "utf8").split("end_of_record")) {
  const of = (key) => [...record.matchAll(new RegExp(`^${key}:(.*)$`, "gm"))].map(([, value]) => value.split(","));
  const path = of("SF")[0]?.[0];
  if (path === undefined) continue;
  const count = (key) => {
    const all = of(key).map((fields) => ({ line: Number(fields[0]), hit: Number(fields.at(key === "DA" ? 1 : -1)) > 0 }));
    return { all: all.length, hit: all.filter(({ hit }) => hit).length, missed: all.filter(({ hit }) => !hit) };
  };
  files.push({ path, lines: count("DA"), branches: count("BRDA") });
}

const percent = ({ all, hit }) => (all === 0 ? 100 : (100 * hit) / all);
const total = (kind) => {
  const sum = (key) => files.reduce((before, file) => before + file[kind][key], 0);
  return { all: sum("all"), hit: sum("hit") };
};
const row = (lines, branches) => ({ "lines %": percent(lines).toFixed(2), "branches %": percent(branches).toFixed(2) });
const [lines, branches] = [total("lines"), total("branches")];
console.table({
  ...Object.fromEntries(files.map((file) => [file.path, row(file.lines, file.branches)])),
  total: row(lines, branches),
});
for (const kind of ["lines", "branches"]) {
  for (const { path, [kind]: { missed } } of files) {
    if (missed.length) console.log(`${path}: no test reaches ${kind} at ${missed.map(({ line }) => line).join(", ")}`);
  }
}

// No files at all, or none with a branch, is a report gone wrong, not a perfect one.
for (const [name, counted] of Object.entries({ lines, branches })) {
  if (counted.all > 0 && percent(counted) >= LEAST) continue;
  console.error(`${counted.hit} of ${counted.all} ${name} are covered, fewer than ${LEAST} %`);
  process.exitCode = 1;
}
