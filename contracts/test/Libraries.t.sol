// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AggregatorDraw} from "../libraries/AggregatorDraw.sol";
import {Entries, Entry} from "../libraries/Entries.sol";
import {Publications} from "../libraries/Publications.sol";
import {SumTree} from "../libraries/SumTree.sol";
import {Cid, JobId, Kind, Leaf, ProofStep, Publication} from "../types/Types.sol";
import {Trees} from "./Fixture.t.sol";
import {bound, vm} from "./Vm.t.sol";

contract SumTreeTest {
    /// @dev A call of its own, so that the arguments are calldata.
    function verify(
        Leaf calldata leaf,
        ProofStep[] calldata proof,
        bytes32 root,
        uint128 total
    ) public pure returns (bool) {
        return SumTree.verify(leaf, proof, root, total);
    }

    function leavesOf(uint256 seed, uint256 count) private pure returns (Leaf[] memory leaves) {
        leaves = new Leaf[](count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            leaves[i] = Leaf({
                account: address(uint160(i + 1)),
                asset: random % 3,
                score: int128(int256(random >> 129)) - int128(int256((random << 127) >> 129)),
                reward: uint128(random % 1 ether),
                cumulative: uint128(random % 1000 ether)
            });
        }
    }

    function testFuzz_each_leaf_proves_itself(uint256 seed, uint256 count) public view {
        Leaf[] memory leaves = leavesOf(seed, bound(count, 1, 33));
        (bytes32 root, uint128 total) = Trees.build(leaves);
        for (uint256 i = 0; i < leaves.length; ++i) {
            vm.assertTrue(this.verify(leaves[i], Trees.prove(leaves, i), root, total));
        }
    }

    function testFuzz_an_altered_leaf_never_proves(uint256 seed, uint256 count, uint256 place, uint256 how) public view {
        Leaf[] memory leaves = leavesOf(seed, bound(count, 1, 33));
        place = bound(place, 0, leaves.length - 1);
        (bytes32 root, uint128 total) = Trees.build(leaves);
        ProofStep[] memory proof = Trees.prove(leaves, place);
        Leaf memory leaf = leaves[place];
        how = how % 5;
        if (how == 0) leaf.account = address(uint160(leaf.account) ^ 1);
        else if (how == 1) leaf.asset ^= 1;
        else if (how == 2) leaf.score ^= 1;
        else if (how == 3) leaf.reward ^= 1;
        else leaf.cumulative ^= 1;
        vm.assertFalse(this.verify(leaf, proof, root, total));
    }

    function testFuzz_an_altered_proof_never_proves(uint256 seed, uint256 count, uint256 place, uint256 how) public view {
        Leaf[] memory leaves = leavesOf(seed, bound(count, 2, 33));
        place = bound(place, 0, leaves.length - 1);
        (bytes32 root, uint128 total) = Trees.build(leaves);
        ProofStep[] memory proof = Trees.prove(leaves, place);
        ProofStep memory step = proof[seed % proof.length];
        how = how % 5;
        if (how == 0) step.hash ^= bytes32(uint256(1));
        else if (how == 1) step.sum ^= 1;
        else if (how == 2) step.isLeft = !step.isLeft;
        else if (how == 3) root ^= bytes32(uint256(1));
        else total ^= 1;
        vm.assertFalse(this.verify(leaves[place], proof, root, total));
    }

    function test_an_inner_node_does_not_pass_for_a_leaf() public view {
        Leaf[] memory leaves = leavesOf(7, 4);
        (bytes32 root, uint128 total) = Trees.build(leaves);
        // One step short: the proof of a leaf, begun one level too high.
        ProofStep[] memory proof = Trees.prove(leaves, 0);
        ProofStep[] memory upper = new ProofStep[](1);
        upper[0] = proof[1];
        vm.assertFalse(this.verify(leaves[0], upper, root, total));
    }

    /// @dev A step as hostile calldata may hold it: a sum wider than its type, which wraps the total around.
    struct WideStep {
        bytes32 hash;
        uint256 sum;
        bool isLeft;
    }

    function test_a_sum_that_overflows_is_no_proof() public view {
        Leaf memory leaf = Leaf(address(1), 0, 0, 0, 5);
        WideStep[] memory proof = new WideStep[](1);
        proof[0] = WideStep(keccak256("sibling"), type(uint256).max - 3, false);
        bytes32 root = keccak256(
            abi.encode(uint8(1), Trees.hashLeaf(leaf), uint256(leaf.cumulative), proof[0].hash, proof[0].sum)
        );
        (bool answered, bytes memory answer) = address(this).staticcall(
            abi.encodeWithSelector(this.verify.selector, leaf, proof, root, uint128(1))
        );
        vm.assertTrue(answered);
        vm.assertFalse(abi.decode(answer, (bool)));
    }

    function test_a_proof_deeper_than_32_is_none() public view {
        Leaf memory leaf = Leaf(address(1), 0, 0, 0, 1);
        bytes32 root = Trees.hashLeaf(leaf);
        ProofStep[] memory proof = new ProofStep[](33);
        for (uint256 i = 0; i < 33; ++i) {
            proof[i] = ProofStep(bytes32(i), 0, false);
            root = Trees.hashInner(root, 1, bytes32(i), 0);
            if (i == 31) {
                ProofStep[] memory deepest = new ProofStep[](32);
                for (uint256 j = 0; j < 32; ++j) deepest[j] = proof[j];
                vm.assertTrue(this.verify(leaf, deepest, root, 1));
            }
        }
        vm.assertFalse(this.verify(leaf, proof, root, 1));
    }
}

contract AggregatorDrawTest {
    function testFuzz_the_drawn_comes_first_and_all_have_a_turn(
        uint256 randao,
        bytes32 parent,
        uint32 reveals,
        uint32 window
    ) public pure {
        reveals = uint32(bound(reveals, 1, 50));
        window = uint32(bound(window, 1, 30 days));
        uint32 drawn = AggregatorDraw.draw(randao, parent, JobId.wrap(1), 2, reveals);
        vm.assertLt(drawn, reveals);
        uint256 seen = 0;
        for (uint32 index = 0; index < reveals; ++index) {
            uint32 rank = AggregatorDraw.rank(index, drawn, reveals);
            vm.assertEq(rank, (index + reveals - drawn) % reveals);
            seen |= 1 << rank;
            vm.assertLt(AggregatorDraw.delay(rank, reveals, window), window);
        }
        vm.assertEq(seen, (1 << reveals) - 1);
        vm.assertEq(AggregatorDraw.delay(0, reveals, window), 0);
    }

    function test_each_turn_is_a_slot_later_up_to_the_last() public pure {
        vm.assertEq(AggregatorDraw.delay(1, 2, 40), 20);
        vm.assertEq(AggregatorDraw.delay(2, 3, 40), 26);
        vm.assertEq(AggregatorDraw.delay(3, 10, 40), 30);
        vm.assertEq(AggregatorDraw.delay(9, 10, 40), 30);
    }

    function test_the_draw_depends_on_all_it_is_given() public pure {
        uint32 many = type(uint32).max;
        uint32 drawn = AggregatorDraw.draw(1, 0, JobId.wrap(1), 1, many);
        vm.assertTrue(drawn != AggregatorDraw.draw(2, 0, JobId.wrap(1), 1, many));
        vm.assertTrue(drawn != AggregatorDraw.draw(1, keccak256("block"), JobId.wrap(1), 1, many));
        vm.assertTrue(drawn != AggregatorDraw.draw(1, 0, JobId.wrap(2), 1, many));
        vm.assertTrue(drawn != AggregatorDraw.draw(1, 0, JobId.wrap(1), 2, many));
    }
}

contract EntriesTest {
    function testFuzz_a_commitment_never_passes_for_a_reveal(bytes32 commitment) public pure {
        Entry entry = Entries.seal(commitment);
        vm.assertFalse(entry.isRevealed());
        vm.assertTrue(entry.seals(commitment));
        vm.assertFalse(entry.seals(commitment ^ bytes32(uint256(2))));
        vm.assertEq(entry.isEmpty(), uint256(commitment) < 2);
    }

    function testFuzz_a_reveal_keeps_its_index(uint8 kind, uint32 index, uint64 samples) public pure {
        Kind kind_ = Kind(bound(kind, 0, 2));
        Entry entry = Entries.open(kind_, index, samples);
        vm.assertTrue(entry.isRevealed());
        vm.assertFalse(entry.isEmpty());
        vm.assertEq(entry.index(), index);
        uint256 word = (uint256(samples) << 104) | (uint256(kind_) << 96) | (uint256(index) << 32) | 1;
        vm.assertEq(Entry.unwrap(entry), word);
    }

    /// @dev The layout that ledger/dfl_ledger/contracts.py hashes too.
    function test_the_hash_is_that_of_the_abi_encoding() public pure {
        bytes memory encoded = abi.encode(
            uint64(1),
            uint32(2),
            keccak256("parent"),
            keccak256("update"),
            uint8(1),
            uint64(64),
            address(0xa11ce),
            keccak256("salt")
        );
        bytes32 hash = Entries.hash(
            JobId.wrap(1),
            2,
            Cid.wrap(keccak256("parent")),
            Cid.wrap(keccak256("update")),
            Kind.Hop,
            64,
            address(0xa11ce),
            keccak256("salt")
        );
        vm.assertEq(hash, keccak256(encoded));
    }
}

contract PublicationsTest {
    using Publications for mapping(uint256 => Publication);

    mapping(uint256 position => Publication) private published;

    /// @dev Rounds and times with gaps; both rise, times not strictly.
    function fill(uint256 seed, uint32 count) private {
        uint32 round = 0;
        uint40 time = 0;
        for (uint32 i = 0; i < count; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            round += uint32(1 + (random % 3));
            time += uint40((random >> 8) % 3);
            published[i] = Publication(address(1), time, round);
        }
    }

    function testFuzz_find_agrees_with_a_search_one_by_one(uint256 seed, uint32 count) public {
        count = uint32(bound(count, 0, 24));
        fill(seed, count);
        for (uint32 round = 0; round <= 3 * count + 1; ++round) {
            bool expected = false;
            uint32 where = 0;
            for (uint32 i = 0; i < count; ++i) {
                if (published[i].round == round) (expected, where) = (true, i);
            }
            (bool found, uint32 position) = published.find(count, round);
            vm.assertEq(found, expected);
            vm.assertEq(position, where);
        }
    }

    function testFuzz_firstAfter_agrees_with_a_count(uint256 seed, uint32 count, uint32 start) public {
        count = uint32(bound(count, 0, 24));
        start = uint32(bound(start, 0, count));
        fill(seed, count);
        for (uint256 time = 0; time <= 2 * uint256(count) + 1; ++time) {
            uint32 expected = start;
            while (expected < count && published[expected].publishedAt <= time) ++expected;
            vm.assertEq(published.firstAfter(start, count, time), expected);
        }
    }
}
