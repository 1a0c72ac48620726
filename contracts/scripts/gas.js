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
  challenge_16: 600_000,
};

const NODES = 10;
const EVALUATORS = 16;
const ROUNDS = 100;
const HOUR = 3_600;
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

// -- the trees, as libraries/SumTree.sol and libraries/VectorTree.sol have them ------------------------------------

const EMPTY = { hash: new Uint8Array(32), sum: 0n };
const REWARD_INNER = 1;
const SCORE_INNER = 5;

function leafNode({ account, asset, score, reward, cumulative }) {
  return { hash: keccakWords(0, account, asset, score, reward, cumulative), sum: cumulative };
}

function scoreNode({ score, weight }) {
  return { hash: keccakWords(4, score, weight), sum: weight };
}

function treeOf(domain, nodes) {
  const width = 2 ** Math.ceil(Math.log2(nodes.length));
  const levels = [[...nodes, ...Array(width - nodes.length).fill(EMPTY)]];
  while (levels.at(-1).length > 1) {
    const below = levels.at(-1);
    const level = [];
    for (let i = 0; i < below.length; i += 2) {
      const [left, right] = below.slice(i, i + 2);
      const hash = keccakWords(domain, left.hash, left.sum, right.hash, right.sum);
      level.push({ hash, sum: left.sum + right.sum });
    }
    levels.push(level);
  }
  return { root: levels.at(-1)[0], levels };
}

function proofOf({ levels }, index) {
  return levels.slice(0, -1).map((level) => {
    const step = { ...level[index ^ 1], isLeft: index % 2 === 1 };
    index >>= 1;
    return step;
  });
}

const rewardTree = (leaves) => treeOf(REWARD_INNER, leaves.map(leafNode));

// A vector's words of four scores, and the siblings of each, hashes only.
function vectorTree(vector) {
  const words = Array.from({ length: Math.ceil(vector.length / 32) }, (_, i) => {
    const bytes = new Uint8Array(32);
    bytes.set(vector.slice(32 * i, 32 * i + 32));
    return bytes;
  });
  const levels = [words.map((own) => keccakWords(2, own))];
  while (levels[0].length & (levels[0].length - 1)) levels[0].push(EMPTY.hash);
  while (levels.at(-1).length > 1) {
    const below = levels.at(-1);
    levels.push(below.flatMap((left, i) => (i % 2 ? [] : [keccakWords(3, left, below[i + 1])])));
  }
  return { words, levels };
}

function vectorOf(scores) {
  return unhex(`0x${scores.map((score) => BigInt.asUintN(64, score).toString(16).padStart(16, "0")).join("")}`);
}

// `count` leaves with equal parts of a total; the first ones are those of `accounts`, so many as there are payees.
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
const { provider } = await hre.network.create({
  override: { initialDate: new Date(START * 1000), accounts: { count: 1 + NODES + EVALUATORS } },
});
let now = START;

async function send(from, to, data) {
  await provider.request({ method: "evm_setNextBlockTimestamp", params: [++now] });
  const tx = { from, to, data, gas: "0xf00000" };
  const hash = await provider.request({ method: "eth_sendTransaction", params: [tx] });
  return provider.request({ method: "eth_getTransactionReceipt", params: [hash] });
}

// The address of the contract that `from` creates with a nonce below 128 (RLP).
function created(from, nonce) {
  return hex(keccak_256(unhex(`0xd694${from.slice(2)}${nonce.toString(16).padStart(2, "0")}`)).slice(12));
}

// The coder wants arguments by name, one alone as it is.
function named(inputs, args) {
  return inputs.length === 1 ? args[0] : Object.fromEntries(inputs.map(({ name }, i) => [name, args[i]]));
}

async function contract(name, address) {
  const { abi: own } = await hre.artifacts.readArtifact(name);
  // Half of what TrainingJobs answers is the code of its desk.
  const abi = name === "TrainingJobs" ? [...(await hre.artifacts.readArtifact("JobDesk")).abi, ...own] : own;
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
  const data = args.length ? deployContract(abi, bytecode, named(inputs, args)) : bytecode;
  const { contractAddress } = await send(from, undefined, data);
  return contract(name, contractAddress);
}

// -- the story ----------------------------------------------------------------------------------------------------

const [requester, ...rest] = await provider.request({ method: "eth_accounts", params: [] });
const nodes = rest.slice(0, NODES);
const evaluators = rest.slice(NODES, NODES + EVALUATORS);
const gas = {};

const LEAST_STAKE = 2n * ETHER;
const [, registryAt, assetsAt, jobsAt, boardAt, distributorAt] = [0, 1, 2, 3, 4, 5].map((n) => created(requester, n));
const token = await deploy(requester, "VnxToken", requester);
const registry = await deploy(
  requester,
  "NodeRegistry",
  token.address,
  BigInt(DAY),
  LEAST_STAKE,
  jobsAt,
  boardAt,
  distributorAt,
);
await deploy(requester, "AssetRegistry");
const jobs = await deploy(requester, "TrainingJobs", token.address, registryAt, assetsAt, boardAt, distributorAt);
const board = await deploy(requester, "ScoreBoard", registryAt, jobsAt);
const distributor = await deploy(
  requester,
  "RewardDistributor",
  token.address,
  registryAt,
  assetsAt,
  jobsAt,
  boardAt,
);

await token.transact(requester, "approve", jobs.address, 10n ** 30n);
for (const node of rest) {
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
  openWindow: BigInt(HOUR),
  commitWindow: BigInt(HOUR),
  revealWindow: BigInt(HOUR),
  aggregateWindow: BigInt(HOUR),
  target: 0n,
  settleWindow: BigInt(HOUR),
  challengeWindow: 1n,
  roundBudget: BUDGET,
  requiredStake: LEAST_STAKE,
  bond: LEAST_STAKE,
  scoreWindow: BigInt(HOUR),
  evaluators: 0n,
  audits: 0n,
  dataBps: 0n,
  modelBps: 0n,
  algorithmBps: 0n,
  evaluatorBps: 0n,
  modelAsset: 0n,
  algorithmAsset: 0n,
  sealAnchor: new Uint8Array(32),
};
// The chain's first job, settlement and payment fill storage that all later ones find filled.
await jobs.transact(requester, "createJob", { ...terms, rounds: 1n, minNodes: 1n, quorum: 1n });
await jobs.transact(nodes[0], "join", 1n);
await playRound(1n, 1n, nodes.slice(0, 1));
await distributor.transact(nodes[0], "settle", ...settlementOf(1n, 1n, rewardTree(leavesOf(nodes, 1, ETHER))));

const job = 2n;
gas.create_job = await jobs.transact(requester, "createJob", terms);
const joins = [];
for (const node of nodes) joins.push(await jobs.transact(node, "join", job));
gas.join = joins[1];

for (let round = 1n; round <= ROUNDS; round++) {
  const played = await playRound(job, round, nodes);
  const leaves = leavesOf(nodes, round === 3n ? 10_000 : NODES, 90n * ETHER * round);
  const tree = rewardTree(leaves);
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
    await setPayees(job, round, leaves.length);
    gas.claim_1_of_10000 = await claim(job, round, leaves, tree, 1);
    await setPayees(job, round, NODES);
  } else if (round === BigInt(ROUNDS)) {
    gas.claim_100 = await claim(job, round, leaves, tree, 2);
  }
}

// -- a scored job, and a wrong score of its second round, of which the first has filled storage again ---------------

const scored = 3n;
const AUDITS = 1;
const SUBJECTS = NODES + AUDITS + 1;
for (const node of evaluators) await registry.transact(node, "enlist");
await jobs.transact(requester, "createJob", {
  ...terms,
  rounds: 2n,
  challengeWindow: BigInt(HOUR),
  evaluators: BigInt(EVALUATORS),
  audits: BigInt(AUDITS),
  evaluatorBps: 1000n,
});
for (const node of nodes) await jobs.transact(node, "joinWith", scored, [], digest("shard", node));
for (const round of [1n, 2n]) {
  const { publisher } = await playRound(scored, round, nodes);
  gas.draw_16 = await board.transact(requester, "draw", scored, round, 0n);
  const [seated] = Object.values(await board.read("seats", scored, round, 0n));
  const vectors = seated.map((node) => vectorOf(Array.from({ length: SUBJECTS }, (_, i) => scoreBy(node, i))));
  const accounts = seated.map((node) => evaluators.find((own) => own.toLowerCase() === node.toLowerCase()));
  for (const [seat, from] of accounts.entries()) {
    const commitment = keccakWords(scored, round, 0, from, keccak_256(vectors[seat]), digest("salt", from));
    gas.commit_scores = await board.transact(from, "commitScores", scored, round, 0n, BigInt(seat), commitment);
  }
  for (const [seat, from] of accounts.entries()) {
    const args = [scored, round, 0n, BigInt(seat), vectors[seat], digest("salt", from)];
    gas.reveal_scores = await board.transact(from, "revealScores", ...args);
  }
  // The score of the first contribution is one too high.
  const scores = Array.from({ length: NODES }, (_, i) => ({ score: 0n, weight: (1n << 224n) | 1n }));
  const scoreTree = treeOf(SCORE_INNER, scores.map(scoreNode));
  const payees = [...nodes, ...accounts];
  const tree = rewardTree(leavesOf(payees, payees.length, 90n * ETHER * round));
  const settlement = settlementOf(scored, round, tree, scoreTree);
  gas.settle_scored = await distributor.transact(publisher, "settle", ...settlement);
  if (round === 1n) continue;

  const words = vectors.map((vector, seat) => {
    const { words: own, levels } = vectorTree(vector);
    return { seat: BigInt(seat), word: own[0], proof: levels.slice(0, -1).map((level, i) => level[i === 0 ? 1 : 1]) };
  });
  gas.challenge_16 = await distributor.transact(
    nodes[1],
    "challengeScore",
    scored,
    round,
    { scoreRoot: scoreTree.root.hash, weights: scoreTree.root.sum, settler: publisher },
    0n,
    scores[0],
    proofOf(scoreTree, 0),
    nodes[0],
    words,
  );
}

// Evaluators differ a little; the median is what most of them say.
function scoreBy(node, subject) {
  return subject < NODES ? 40_000_000n + BigInt(subject) + (number(digest(node, subject)) % 1000n) : 1n;
}

// The second lap: the first one fills storage that all later ones find filled.
const chained = 4n;
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

function settlementOf(id, round, { root }, scoreTree = { root: EMPTY }) {
  const { hash, sum } = scoreTree.root;
  return [id, round, root.hash, root.sum, hash, sum, digest("evidence", round)];
}

// Ten thousand members would take minutes to join: the settlement is told that it has so many payees.
async function setPayees(id, round, payees) {
  const SETTLEMENTS = 2;
  const at = number(keccakWords(round, keccakWords(id, SETTLEMENTS))) + 2n;
  const slot = `0x${word(at)}`;
  const packed = BigInt(await provider.request({ method: "eth_getStorageAt", params: [distributor.address, slot, "latest"] }));
  const mask = 0xffffffffn << 152n;
  const value = `0x${word((packed & ~mask) | (BigInt(payees) << 152n))}`;
  await provider.request({ method: "hardhat_setStorageAt", params: [distributor.address, slot, value] });
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
