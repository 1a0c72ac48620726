// Gas of what nodes do again and again, on a fresh in-process chain, written to benchmarks/gas.json. With --check it
// compares to the figures there instead, and fails where one grew or shrank by more than 2 %.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { keccak_256 } from "@noble/hashes/sha3";
import hre from "hardhat";
import { createContract, deployContract } from "micro-eth-signer/advanced/abi.js";

const CHECK = process.argv.includes("--check");
const SNAPSHOT = join(hre.config.paths.root, "benchmarks", "gas.json");
const TOLERANCE = 0.02;
const CEILINGS = {
  commit_reveal: 110_000,
  settle_10: 150_000,
  settle_10000: 150_000,
  settle_first: 150_000,
  claim_1: 80_000,
  claim_100: 80_000,
  claim_again: 80_000,
};

const NODES = 10;
const ROUNDS = 100;
const DAY = 86_400;
const ETHER = 10n ** 18n;
const BUDGET = 100n * ETHER;
// Both chain and clock are fixed: the draw of an aggregator depends on block hashes, and gas a little on the draw.
const START = 1_800_000_000;

// -- bytes --------------------------------------------------------------------------------------------------------

const hex = (bytes) => `0x${Buffer.from(bytes).toString("hex")}`;
const unhex = (text) => Uint8Array.from(Buffer.from(text.slice(2), "hex"));
const number = (value) => BigInt(value instanceof Uint8Array ? hex(value) : value);
const word = (value) => BigInt.asUintN(256, number(value)).toString(16).padStart(64, "0");
const keccakWords = (...values) => keccak_256(unhex(`0x${values.map(word).join("")}`));
const digest = (...parts) => keccak_256(new TextEncoder().encode(parts.join("/")));

// -- the Merkle-sum tree, as libraries/SumTree.sol has it -----------------------------------------------------------

function leafNode({ account, asset, score, reward, cumulative }) {
  return { hash: keccakWords(0, account, asset, score, reward, cumulative), sum: cumulative };
}

function innerNode(left, right) {
  return { hash: keccakWords(1, left.hash, left.sum, right.hash, right.sum), sum: left.sum + right.sum };
}

function treeOf(leaves) {
  const levels = [leaves.map(leafNode)];
  while (levels.at(-1).length > 1) {
    const below = levels.at(-1);
    const level = [];
    for (let i = 0; i < below.length; i += 2) {
      level.push(i + 1 < below.length ? innerNode(below[i], below[i + 1]) : below[i]);
    }
    levels.push(level);
  }
  return { root: levels.at(-1)[0], levels };
}

function proofOf({ levels }, index) {
  const proof = [];
  for (const level of levels.slice(0, -1)) {
    const sibling = level[index ^ 1];
    if (sibling) proof.push({ ...sibling, isLeft: index % 2 === 1 });
    index >>= 1;
  }
  return proof;
}

// `count` leaves with equal parts of a total; the first ones are those of `accounts`.
function leavesOf(accounts, count, total) {
  return Array.from({ length: count }, (_, i) => ({
    account: accounts[i] ?? `0x${word(0xf0000000 + i).slice(24)}`,
    asset: 0n,
    score: 12_345_678n,
    reward: ETHER / 3n,
    cumulative: total / BigInt(count),
  }));
}

// -- the chain ----------------------------------------------------------------------------------------------------

await hre.tasks.getTask("build").run({ noTests: true, quiet: true });
const { provider } = await hre.network.create({ override: { initialDate: new Date(START * 1000) } });
let now = START;

async function send(from, to, data) {
  await provider.request({ method: "evm_setNextBlockTimestamp", params: [++now] });
  const tx = { from, to, data, gas: "0xf00000" };
  const hash = await provider.request({ method: "eth_sendTransaction", params: [tx] });
  return provider.request({ method: "eth_getTransactionReceipt", params: [hash] });
}

// The coder wants arguments by name, one alone as it is.
function named(inputs, args) {
  return inputs.length === 1 ? args[0] : Object.fromEntries(inputs.map(({ name }, i) => [name, args[i]]));
}

async function contract(name, address) {
  const { abi } = await hre.artifacts.readArtifact(name);
  const coder = createContract(abi);
  const encode = (method, args) => {
    const { inputs } = abi.find((item) => item.type === "function" && item.name === method);
    return hex(coder[method].encodeInput(named(inputs, args)));
  };
  const transact = async (from, method, ...args) => {
    const receipt = await send(from, address, encode(method, args));
    return Number(receipt.gasUsed);
  };
  const read = async (method, ...args) => {
    const call = { to: address, data: encode(method, args) };
    const result = await provider.request({ method: "eth_call", params: [call, "latest"] });
    return coder[method].decodeOutput(unhex(result));
  };
  return { address, transact, read };
}

async function deploy(from, name, ...args) {
  const { abi, bytecode } = await hre.artifacts.readArtifact(name);
  const { inputs } = abi.find((item) => item.type === "constructor");
  const data = deployContract(abi, bytecode, named(inputs, args));
  const { contractAddress } = await send(from, undefined, data);
  return contract(name, contractAddress);
}

// -- the story ----------------------------------------------------------------------------------------------------

const [requester, ...rest] = await provider.request({ method: "eth_accounts", params: [] });
const nodes = rest.slice(0, NODES);
const gas = {};

const token = await deploy(requester, "VnxToken", requester);
const registry = await deploy(requester, "NodeRegistry", token.address, BigInt(DAY), 1n, requester, requester, requester);
const jobs = await deploy(requester, "TrainingJobs", token.address, registry.address);
const distributor = await contract("RewardDistributor", await jobs.read("distributor"));

await token.transact(requester, "approve", jobs.address, 10n ** 30n);
for (const node of nodes) {
  await token.transact(requester, "transfer", node, 20n * ETHER);
  await token.transact(node, "approve", registry.address, 10n ** 30n);
  await registry.transact(node, "register", digest("peer", node), 10n * ETHER, []);
}

const terms = {
  spec: digest("spec"),
  model: digest("base model"),
  mode: 0n,
  rounds: BigInt(ROUNDS),
  quorum: 2n,
  minNodes: BigInt(NODES),
  openWindow: BigInt(DAY),
  commitWindow: BigInt(DAY),
  revealWindow: BigInt(DAY),
  aggregateWindow: BigInt(DAY),
  target: 0n,
  settleWindow: BigInt(DAY),
  challengeWindow: 1n,
  roundBudget: BUDGET,
  requiredStake: ETHER,
};
// The chain's first job, settlement and payment fill storage that all later ones find filled.
await jobs.transact(requester, "createJob", { ...terms, rounds: 1n, minNodes: 1n, quorum: 1n });
await jobs.transact(nodes[0], "join", 1n);
await playRound(1n, 1n, nodes.slice(0, 1));
await distributor.transact(nodes[0], "settle", ...settlementOf(1n, 1n, treeOf(leavesOf(nodes, 1, ETHER))));

const job = 2n;
gas.create_job = await jobs.transact(requester, "createJob", terms);
const joins = [];
for (const node of nodes) joins.push(await jobs.transact(node, "join", job));
gas.join = joins[1];

for (let round = 1n; round <= ROUNDS; round++) {
  const played = await playRound(job, round, nodes);
  const leaves = leavesOf(nodes, round === 3n ? 10_000 : NODES, 90n * ETHER * round);
  const tree = treeOf(leaves);
  const settled = await distributor.transact(played.publisher, "settle", ...settlementOf(job, round, tree));
  if (round === 1n) {
    gas.settle_first = settled;
    gas.claim_1 = await claim(job, round, leaves, tree, 0);
  } else if (round === 2n) {
    gas.commit_reveal = played.contributions[1];
    gas.commit_reveal_last = played.contributions.at(-1);
    gas.publish_model = played.publish;
    gas.settle_10 = settled;
    gas.claim_again = await claim(job, round, leaves, tree, 0);
  } else if (round === 3n) {
    gas.settle_10000 = settled;
    gas.claim_1_of_10000 = await claim(job, round, leaves, tree, 1);
  } else if (round === BigInt(ROUNDS)) {
    gas.claim_100 = await claim(job, round, leaves, tree, 2);
  }
}

// The second lap: the first one fills storage that all later ones find filled.
const chained = 3n;
const CHAINED_MODE = 3n;
await jobs.transact(requester, "createJob", { ...terms, mode: CHAINED_MODE });
for (const node of nodes) await jobs.transact(node, "join", chained);
for (const round of [1n, 2n]) {
  const hops = [];
  for (let place = 0; place < NODES; place++) {
    const { node } = await jobs.read("lease", chained);
    const model = digest("hop", round, place);
    const from = nodes.find((own) => own.toLowerCase() === node.toLowerCase());
    hops.push(await jobs.transact(from, "hop", chained, round, true, model, 5000n));
    if (place === NODES - 1 && round === 1n) {
      const drawn = await publisherOf(chained);
      await jobs.transact(drawn, "publishModel", chained, round, model);
    }
  }
  gas.hop = hops[1];
}

async function publisherOf(id) {
  for (const node of nodes) {
    const from = await jobs.read("mayAggregateAt", id, node);
    if (from !== 0n && from <= BigInt(now + 1)) return node;
  }
  throw new Error("nobody may publish");
}

function shown(update, parent, node) {
  return [0n, update, parent, 5000n, digest("salt", node)];
}

// Commits and reveals in order, so that a member's place is its index; `contributions` is the gas of each.
async function playRound(id, round, members) {
  const { model: parent } = await jobs.read("job", id);
  const contributions = [];
  for (const node of members) {
    const update = digest("update", round, node);
    const commitment = keccakWords(id, round, parent, update, 0, 5000, node, digest("salt", node));
    contributions.push(await jobs.transact(node, "commit", id, round, commitment));
  }
  for (const [i, node] of members.entries()) {
    const update = digest("update", round, node);
    contributions[i] += await jobs.transact(node, "reveal", id, round, ...shown(update, parent, node));
  }
  const { draw } = await jobs.read("job", id);
  const publisher = members[Number(draw)];
  const publish = await jobs.transact(publisher, "publishModel", id, round, digest("model", round));
  return { contributions, publisher, publish };
}

function settlementOf(id, round, { root }) {
  return [id, round, root.hash, root.sum, digest("evidence", round)];
}

async function claim(id, round, leaves, tree, index) {
  return distributor.transact(nodes[index], "claim", id, round, leaves[index], proofOf(tree, index));
}

// -- the figures --------------------------------------------------------------------------------------------------

const sorted = Object.fromEntries(Object.entries(gas).sort());
console.table(sorted);
const complaints = Object.entries(CEILINGS)
  .filter(([name, most]) => !(gas[name] <= most))
  .map(([name, most]) => `${name} takes ${gas[name]} gas, more than ${most}`);
if (CHECK) {
  const recorded = JSON.parse(await readFile(SNAPSHOT, "utf8"));
  for (const name of new Set([...Object.keys(gas), ...Object.keys(recorded)])) {
    if (!(Math.abs(gas[name] - recorded[name]) <= TOLERANCE * recorded[name])) {
      complaints.push(`${name} takes ${gas[name]} gas, recorded are ${recorded[name]}. Run: npm run gas`);
    }
  }
} else {
  await writeFile(SNAPSHOT, `${JSON.stringify(sorted, null, 2)}\n`);
}
for (const complaint of complaints) console.error(complaint);
if (complaints.length) process.exitCode = 1;
