// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AggregatorDraw} from "../libraries/AggregatorDraw.sol";
import {Entries, Entry} from "../libraries/Entries.sol";
import {Publications} from "../libraries/Publications.sol";
import {Cid, JobId, Kind, Publication} from "../types/Types.sol";
import {bound, vm} from "./Vm.t.sol";

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
        vm.assertEq(entry.isSealed(), Entries.isHash(commitment));
    }

    function testFuzz_a_reveal_keeps_its_index(uint8 kind, uint32 index, uint64 samples) public pure {
        Kind kind_ = Kind(bound(kind, 0, 2));
        Entry entry = Entries.open(kind_, index, samples);
        vm.assertTrue(entry.isRevealed());
        vm.assertFalse(entry.isEmpty());
        vm.assertEq(entry.index(), index);
        vm.assertEq(uint256(entry.kindOf()), uint256(kind_));
        vm.assertEq(entry.samplesOf(), samples);
        vm.assertFalse(entry.isSealed());
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
            published[i] = Publication(time, round, 0, 0, 0, 0);
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
