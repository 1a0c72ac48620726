// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";

import {JobDesk} from "../JobDesk.sol";
import {TrainingJobs} from "../TrainingJobs.sol";
import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {AssetKind} from "../types/Assets.sol";
import {Cid, JobId, JobTerms, Kind, Mode, Payee, Phase, Publication} from "../types/Types.sol";
import {ScoringFixture} from "./Scoring.t.sol";
import {bound, vm} from "./Vm.t.sol";

/// @notice Terms, assets, data sets, shards, payees: what a job is told, and by whom.
contract JobDeskTest is ScoringFixture {
    function outOfRange(JobTerms memory t, string memory term, uint256 value, uint256 least, uint256 most) private {
        refuse(requester, abi.encodeWithSelector(IJobRecord.TermOutOfRange.selector, term, value, least, most));
        jobs.createJob(t);
    }

    function assetRefused(JobTerms memory t, bytes memory reason) private {
        refuse(requester, reason);
        jobs.createJob(t);
    }

    // -- terms -----------------------------------------------------------------------------------------------------

    function test_scoring_terms_out_of_range_are_refused() public {
        mintAssets();
        JobTerms memory t = scoredTerms();
        t.bond = STAKE + 1;
        outOfRange(t, "bond", STAKE + 1, 0, STAKE);
        t = scoredTerms();
        t.scoreWindow = 0;
        outOfRange(t, "scoreWindow", 0, 1, 30 days - 1);
        t = scoredTerms();
        t.evaluators = 17;
        outOfRange(t, "evaluators", 17, 0, 16);
        t = scoredTerms();
        t.audits = 9;
        outOfRange(t, "audits", 9, 0, 8);
        t = scoredTerms();
        t.evaluatorBps = 0;
        outOfRange(t, "evaluatorBps", 0, 1, 9999);
        t = scoredTerms();
        t.dataBps = 10_000;
        outOfRange(t, "dataBps", 10_000, 0, 9999);
        t = scoredTerms();
        t.dataBps = 8200;
        outOfRange(t, "shares", 10_000, 0, 9999);
        t = scoredTerms();
        // Two times a tenth of 100 ether, by three.
        t.bond = uint96(20 ether) / 3;
        outOfRange(t, "bonds", uint256(t.bond) * 3, 20 ether, type(uint256).max);
        t.bond += 1;
        create(t);
    }

    function test_without_evaluators_nothing_is_scored() public {
        JobTerms memory t = terms();
        t.audits = 1;
        outOfRange(t, "audits", 1, 0, 0);
        t = terms();
        t.dataBps = 1;
        outOfRange(t, "dataBps", 1, 0, 0);
        t = terms();
        t.evaluatorBps = 1;
        outOfRange(t, "evaluatorBps", 1, 0, 0);
    }

    function test_stake_outlasts_the_windows() public {
        JobTerms memory t = terms();
        // 60 + 30 + 40 + 200 + 50 of the other windows.
        t.scoreWindow = (1 days - 380) / 4;
        create(t);
        t.scoreWindow += 1;
        outOfRange(t, "windows", 1 days + 4, 1, 1 days);
    }

    function test_a_job_pays_for_usable_assets_what_they_ask() public {
        mintAssets();
        JobTerms memory t = scoredTerms();
        t.modelAsset = 0;
        outOfRange(t, "modelBps", 500, 0, 0);
        t = scoredTerms();
        t.algorithmAsset = 0;
        outOfRange(t, "algorithmBps", 300, 0, 0);
        t = scoredTerms();
        t.modelBps = 99;
        assetRefused(t, abi.encodeWithSelector(IJobRecord.ShareTooLow.selector, model, 99, 100));
        t = scoredTerms();
        t.modelAsset = algorithm;
        assetRefused(t, abi.encodeWithSelector(IJobRecord.AssetUnusable.selector, algorithm));
        vm.prank(ASSET_OWNER);
        assets.revoke(model);
        assetRefused(scoredTerms(), abi.encodeWithSelector(IJobRecord.AssetUnusable.selector, model));
    }

    function test_an_asset_that_asks_nothing_still_has_a_share() public {
        mintAssets();
        vm.prank(ASSET_OWNER);
        assets.setPrice(model, 0);
        JobTerms memory t = scoredTerms();
        t.modelBps = 0;
        assetRefused(t, abi.encodeWithSelector(IJobRecord.ShareTooLow.selector, model, 0, 0));
        t.modelBps = 1;
        create(t);
    }

    // -- the permit --------------------------------------------------------------------------------------------------

    function permit(uint256 key, uint256 value) private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 typeHash = keccak256(
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        );
        address owner = vm.addr(key);
        bytes32 own = keccak256(
            abi.encode(typeHash, owner, address(jobs), value, token.nonces(owner), block.timestamp)
        );
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), own)));
    }

    function test_a_permit_pays_in_the_same_transaction() public {
        address owner = vm.addr(0x5ee);
        token.transfer(owner, 300 ether);
        (uint8 v, bytes32 r, bytes32 s) = permit(0x5ee, 300 ether);
        vm.prank(owner);
        JobId job = jobs.createJobWithPermit(terms(), block.timestamp, v, r, s);
        vm.assertEq(jobs.job(job).requester, owner);
        vm.assertEq(token.balanceOf(address(distributor)), 300 ether);
        vm.assertEq(token.allowance(owner, address(jobs)), 0);
    }

    function test_a_permit_used_by_another_does_no_harm() public {
        address owner = vm.addr(0x5ee);
        token.transfer(owner, 300 ether);
        (uint8 v, bytes32 r, bytes32 s) = permit(0x5ee, 300 ether);
        vm.prank(nodeAt(7));
        token.permit(owner, address(jobs), 300 ether, block.timestamp, v, r, s);
        vm.prank(owner);
        jobs.createJobWithPermit(terms(), block.timestamp, v, r, s);
        vm.assertEq(token.balanceOf(address(distributor)), 300 ether);
    }

    function test_a_wrong_permit_opens_nothing() public {
        address owner = vm.addr(0x5ee);
        token.transfer(owner, 300 ether);
        (uint8 v, bytes32 r, bytes32 s) = permit(0x5ef, 300 ether);
        vm.expectPartialRevert(IERC20Errors.ERC20InsufficientAllowance.selector);
        vm.prank(owner);
        jobs.createJobWithPermit(terms(), block.timestamp, v, r, s);
        vm.assertEq(uint256(jobs.jobCount()), 0);
    }

    // -- members, data sets, shards ------------------------------------------------------------------------------------

    function test_payees_are_numbered_in_the_order_they_come() public {
        mintAssets();
        vm.expectEmit(address(jobs));
        emit IJobRecord.PayeeAdded(JobId.wrap(1), 0, address(0), model);
        vm.expectEmit(address(jobs));
        emit IJobRecord.PayeeAdded(JobId.wrap(1), 1, address(0), algorithm);
        JobId job = create(scoredTerms());
        joinAll(job);
        vm.assertEq(uint256(jobs.payeeCount(job)), 6);
        Payee memory own = jobs.payee(job, 2);
        vm.assertEq(own.account, nodeAt(0));
        own = jobs.payee(job, 3);
        vm.assertEq(own.asset, data);
        vm.assertEq(own.account, address(0));
        (bool found, uint32 index) = jobs.payeeOf(job, nodeAt(2));
        vm.assertTrue(found && index == 5);
        (found, index) = jobs.payeeOfAsset(job, data);
        vm.assertTrue(found && index == 3);
        (found, ) = jobs.payeeOf(job, nodeAt(3));
        vm.assertFalse(found);
        (found, ) = jobs.payeeOfAsset(job, 99);
        vm.assertFalse(found);
        vm.assertEq(jobs.payee(job, 6).account, address(0));
    }

    function test_joinWith_declares_once_and_for_later_joins() public {
        mintAssets();
        JobId job = create(scoredTerms());
        register(nodeAt(0), STAKE);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.ShardMissing.selector, job, nodeAt(0)));
        jobs.join(job);
        uint64[] memory own = new uint64[](1);
        own[0] = data;
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.ShardMissing.selector, job, nodeAt(0)));
        jobs.joinWith(job, own, 0);
        vm.expectEmit(address(jobs));
        emit IJobRecord.ShardCommitted(job, nodeAt(0), SALT);
        vm.expectEmit(address(jobs));
        emit IJobRecord.NodeJoined(job, nodeAt(0), 1);
        vm.expectEmit(address(jobs));
        emit IJobRecord.DatasetDeclared(job, nodeAt(0), data, 0);
        vm.prank(nodeAt(0));
        jobs.joinWith(job, own, SALT);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.AlreadyDeclared.selector, job, nodeAt(0)));
        jobs.joinWith(job, own, SALT);
        vm.assertEq(uint256(jobs.datasetCount(job)), 1);
        vm.assertEq(jobs.dataset(job, 0), data);
        (bool found, uint32 place) = jobs.datasetPlace(job, data);
        vm.assertTrue(found && place == 0);
        (found, ) = jobs.datasetPlace(job, model);
        vm.assertFalse(found);

        // Out for want of stake, and in again without a second declaration.
        vm.prank(nodeAt(0));
        registry.unbond();
        jobs.expel(job, nodeAt(0));
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.NodeNotBonded.selector, nodeAt(0)));
        jobs.join(job);
    }

    function test_two_nodes_may_bring_the_same_data_set() public {
        mintAssets();
        vm.prank(ASSET_OWNER);
        assets.setApprovalForAll(nodeAt(1), true);
        JobId job = create(scoredTerms());
        uint64[] memory own = new uint64[](1);
        own[0] = data;
        for (uint256 i = 0; i < 2; ++i) {
            register(nodeAt(i), STAKE);
            vm.prank(nodeAt(i));
            jobs.joinWith(job, own, SALT);
        }
        vm.assertEq(uint256(jobs.datasetCount(job)), 1);
        vm.assertEq(uint256(jobs.payeeCount(job)), 5);
    }

    function test_data_sets_are_refused_without_right_share_or_place() public {
        mintAssets();
        JobId job = create(scoredTerms());
        register(nodeAt(1), STAKE);
        uint64[] memory own = new uint64[](1);
        own[0] = data;
        refuse(nodeAt(1), abi.encodeWithSelector(IJobRecord.MayNotUse.selector, data, nodeAt(1)));
        jobs.joinWith(job, own, SALT);
        own[0] = model;
        refuse(nodeAt(1), abi.encodeWithSelector(IJobRecord.AssetUnusable.selector, model));
        jobs.joinWith(job, own, SALT);
        refuse(nodeAt(1), abi.encodeWithSelector(IJobRecord.TooManyDatasets.selector, job, 9, 8));
        jobs.joinWith(job, new uint64[](9), SALT);
        JobTerms memory t = scoredTerms();
        t.dataBps = 99;
        job = create(t);
        own[0] = data;
        register(nodeAt(0), STAKE);
        refuse(nodeAt(0), abi.encodeWithSelector(IJobRecord.ShareTooLow.selector, data, 99, 100));
        jobs.joinWith(job, own, SALT);
    }

    function test_a_job_takes_64_data_sets() public {
        mintAssets();
        JobTerms memory t = scoredTerms();
        t.minNodes = 20;
        JobId job = create(t);
        for (uint256 i = 0; i <= 8; ++i) {
            register(nodeAt(i), STAKE);
            if (i != 0) {
                vm.prank(ASSET_OWNER);
                assets.setApprovalForAll(nodeAt(i), true);
            }
            uint64[] memory own = new uint64[](i == 8 ? 1 : 8);
            for (uint256 k = 0; k < own.length; ++k) own[k] = mint(AssetKind.Dataset, string(abi.encode(i, k)));
            if (i == 8) vm.expectRevert(abi.encodeWithSelector(IJobRecord.TooManyDatasets.selector, job, 65, 64));
            vm.prank(nodeAt(i));
            jobs.joinWith(job, own, SALT);
        }
        vm.assertEq(uint256(jobs.datasetCount(job)), 64);
    }

    function test_a_private_job_asks_for_no_shard() public {
        JobId job = create(terms());
        register(nodeAt(0), STAKE);
        vm.prank(nodeAt(0));
        jobs.joinWith(job, new uint64[](0), 0);
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(0))), 1);
    }

    // -- delegates -------------------------------------------------------------------------------------------------------

    function test_a_delegate_does_all_that_its_node_does() public {
        JobId job = inCommit(2);
        address hot = address(0x407);
        vm.prank(nodeAt(0));
        registry.setDelegate(hot);
        vm.prank(hot);
        registry.actFor(nodeAt(0));
        bytes32 commitment = commitmentOf(job, 1, nodeAt(0));
        vm.expectEmit(address(jobs));
        emit IJobRecord.ContributionCommitted(job, 1, nodeAt(0), commitment);
        vm.prank(hot);
        jobs.commit(job, 1, commitment);
        commitAs(job, nodeAt(1));
        revealAs(job, nodeAt(1));
        Cid update = updateOf(1, nodeAt(0));
        vm.prank(hot);
        jobs.reveal(job, 1, Kind.Update, update, BASE_MODEL, 64, SALT);
        vm.assertTrue(jobs.revealed(job, 1, nodeAt(0)));
        vm.warp(jobs.mayAggregateAt(job, nodeAt(0)));
        vm.prank(hot);
        jobs.publishModel(job, 1, modelOf(1));
        vm.assertEq(uint256(jobs.publication(job, 1).publisherIndex), 1);

        JobTerms memory t = terms();
        t.mode = Mode.Chained;
        (t.minNodes, t.quorum) = (1, 1);
        JobId laps = create(t);
        vm.prank(hot);
        jobs.join(laps);
        (address holder, , ) = jobs.lease(laps);
        vm.assertEq(holder, nodeAt(0));
        vm.prank(hot);
        jobs.hop(laps, 1, true, SPEC, 1);
        vm.assertTrue(jobs.revealed(laps, 1, nodeAt(0)));
    }

    // -- seals -----------------------------------------------------------------------------------------------------------

    function sealedJob() private returns (JobId job) {
        JobTerms memory t = terms();
        // The keys are a chain: the first one is the hash of the second.
        t.sealAnchor = keccak256(abi.encode(keyAt(0)));
        (t.minNodes, t.quorum) = (2, 2);
        job = create(t);
        joinNodes(job, 0, 2);
    }

    function keyAt(uint256 i) private pure returns (bytes32 own) {
        own = keccak256("last key");
        for (; i < 3; ++i) own = keccak256(abi.encode(own));
    }

    function notDue(JobId job, uint32 position, uint32 next) private {
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.ShardNotDue.selector, job, position, next));
        jobs.unseal(job, position, keyAt(position));
    }

    function test_shards_are_unsealed_one_a_round_once_commitments_are_in() public {
        JobId job = sealedJob();
        (uint32 count, bytes32 last) = jobs.unsealed(job);
        vm.assertEq(uint256(count), 0);
        vm.assertEq(last, keccak256(abi.encode(keyAt(0))));
        notDue(job, 0, 0);
        commitNodes(job, 2);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.WrongKey.selector, job, 0, SALT));
        jobs.unseal(job, 0, SALT);
        notDue(job, 1, 0);
        vm.expectEmit(address(jobs));
        emit IJobRecord.ShardUnsealed(job, 0, keyAt(0));
        jobs.unseal(job, 0, keyAt(0));
        notDue(job, 0, 1);
        notDue(job, 1, 1);
        revealNodes(job, 2);
        publishAs(job, drawn(job));
        notDue(job, 1, 1);
        playRound(job, 2);
        // A round that has its model may be unsealed at any time.
        jobs.unseal(job, 1, keyAt(1));
        notDue(job, 2, 2);
        playRound(job, 2);
        assertPhase(job, Phase.Completed);
        jobs.unseal(job, 2, keyAt(2));
        (count, last) = jobs.unsealed(job);
        vm.assertEq(uint256(count), 3);
        vm.assertEq(last, keyAt(2));
        notDue(job, 3, 3);
    }

    function test_a_job_without_seal_has_no_keys() public {
        JobId job = inReveal(2);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.WrongKey.selector, job, 0, SALT));
        jobs.unseal(job, 0, SALT);
    }

    // -- withheld reveals ------------------------------------------------------------------------------------------------

    function unpunished(JobId job, uint32 round, address node) private {
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NothingWithheld.selector, job, round, node));
        jobs.punish(job, round, node);
    }

    function test_who_commits_and_does_not_reveal_loses_its_bond_once() public {
        JobId job = inReveal(3);
        revealNodes(job, 2);
        unpunished(job, 1, nodeAt(2));
        toDeadline(job);
        unpunished(job, 1, nodeAt(2));
        jobs.advance(job);
        unpunished(job, 1, nodeAt(1));
        unpunished(job, 1, nodeAt(9));
        unpunished(job, 2, nodeAt(2));
        vm.expectEmit(address(jobs));
        emit IJobRecord.RevealWithheld(job, 1, nodeAt(2));
        vm.prank(address(0xfee));
        jobs.punish(job, 1, nodeAt(2));
        vm.assertEq(registry.stakeOf(nodeAt(2)), STAKE - BOND);
        vm.assertEq(token.balanceOf(address(0xfee)), BOND / 10);
        vm.assertTrue(jobs.committed(job, 1, nodeAt(2)));
        vm.assertFalse(jobs.revealed(job, 1, nodeAt(2)));
        unpunished(job, 1, nodeAt(2));
        publishAs(job, drawn(job));
        unpunished(job, 1, nodeAt(2));
    }

    function test_a_round_without_quorum_is_no_excuse() public {
        JobId job = inReveal(3);
        revealNodes(job, 1);
        toDeadline(job);
        jobs.advance(job);
        vm.assertEq(jobs.job(job).round, 2);
        jobs.punish(job, 1, nodeAt(1));
        jobs.punish(job, 1, nodeAt(2));
    }

    function test_nobody_is_punished_where_nobody_could_reveal() public {
        JobId job = inCommit(3);
        for (uint32 round = 1; round <= 3; ++round) {
            if (round > 1) joinNodes(job, 0, 3);
            commitAs(job, nodeAt(0));
            toDeadline(job);
            jobs.advance(job);
            unpunished(job, round, nodeAt(0));
        }
        assertPhase(job, Phase.Failed);
        unpunished(job, 3, nodeAt(0));
    }

    // -- leaving, willing or not -----------------------------------------------------------------------------------------

    function test_expel_refuses_who_has_its_stake_or_is_no_member() public {
        JobId job = inCommit(2);
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.StakeSuffices.selector, nodeAt(0), STAKE, STAKE));
        jobs.expel(job, nodeAt(0));
        vm.expectRevert(abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 1, nodeAt(9)));
        jobs.expel(job, nodeAt(9));
    }

    function test_who_leaves_the_registry_is_expelled() public {
        JobId job = inCommit(3);
        vm.prank(nodeAt(2));
        registry.unbond();
        vm.expectEmit(address(jobs));
        emit IJobRecord.NodeExpelled(job, nodeAt(2));
        jobs.expel(job, nodeAt(2));
        bytes32 commitment = commitmentOf(job, 1, nodeAt(2));
        refuse(nodeAt(2), abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 1, nodeAt(2)));
        jobs.commit(job, 1, commitment);
        // Its absence is that of one who stays silent.
        vm.assertEq(jobs.job(job).expected, 3);
        commitNodes(job, 2);
        toDeadline(job);
        jobs.advance(job);
        assertPhase(job, Phase.Reveal);
    }

    function test_in_OPEN_an_expelled_node_is_not_waited_for() public {
        JobId job = create(terms());
        joinNodes(job, 0, 2);
        vm.prank(nodeAt(1));
        registry.unbond();
        jobs.expel(job, nodeAt(1));
        vm.assertEq(jobs.job(job).expected, 1);
        joinNodes(job, 2, 3);
        assertPhase(job, Phase.Open);
    }

    function test_who_joined_the_next_round_is_taken_out_of_that() public {
        JobId job = inCommit(2);
        joinNodes(job, 2, 3);
        vm.prank(nodeAt(2));
        registry.unbond();
        jobs.expel(job, nodeAt(2));
        playRound(job, 2);
        vm.assertEq(jobs.job(job).expected, 2);
    }

    function test_with_a_target_the_banned_are_not_expected_any_more() public {
        JobTerms memory t = terms();
        (t.mode, t.target) = (Mode.Async, 3);
        JobId job = create(t);
        joinNodes(job, 0, 3);
        commitNodes(job, 2);
        vm.prank(address(board));
        jobs.ban(job, nodeAt(0));
        vm.assertEq(jobs.job(job).expected, 2);
        // Two have committed, which is all of them; the next one ends COMMIT all the same.
        commitAs(job, nodeAt(2));
        assertPhase(job, Phase.Reveal);
        revealNodes(job, 3);
        assertPhase(job, Phase.Aggregate);
        publishAs(job, drawn(job));
        vm.prank(address(board));
        jobs.unban(job, nodeAt(0));
        joinNodes(job, 0, 1);
        vm.assertEq(uint256(jobs.activeRound(job, nodeAt(0))), 3);
        commitAs(job, nodeAt(1));
        commitAs(job, nodeAt(2));
        assertPhase(job, Phase.Reveal);
    }

    function test_in_a_lap_the_banned_lose_their_lease() public {
        JobTerms memory t = terms();
        t.mode = Mode.Chained;
        JobId job = create(t);
        joinNodes(job, 0, 3);
        (address holder, , ) = jobs.lease(job);
        vm.prank(address(board));
        jobs.ban(job, holder);
        refuse(holder, abi.encodeWithSelector(IJobRecord.NotActive.selector, job, 1, holder));
        jobs.hop(job, 1, true, SPEC, 1);
        toDeadline(job);
        jobs.advance(job);
        vm.assertEq(uint256(jobs.activeRound(job, holder)), type(uint32).max);
        for (uint256 i = 0; i < 2; ++i) {
            (holder, , ) = jobs.lease(job);
            vm.prank(holder);
            jobs.hop(job, 1, true, SPEC, 1);
        }
        assertPhase(job, Phase.Aggregate);
        vm.assertEq(uint256(jobs.job(job).expected), 3);
    }

    function test_publications_say_where_evaluators_are_drawn_from() public {
        JobId job = inCommit(2);
        vm.roll(1000);
        commitNodes(job, 2);
        vm.roll(1010);
        revealNodes(job, 2);
        address publisher = drawn(job);
        publishAs(job, publisher);
        Publication memory own = jobs.publicationAt(job, 0);
        // While anyone could choose when to reveal, nobody knew who would be audited.
        vm.assertEq(uint256(own.sealBlock), 1010);
        vm.assertEq(uint256(own.contributions), 2);
        vm.assertEq(nodeAt(own.publisherIndex), publisher);
        vm.assertEq(uint256(own.payees), 2);
        (bool found, uint32 position) = jobs.position(job, 1);
        vm.assertTrue(found && position == 0);
        (found, ) = jobs.position(job, 2);
        vm.assertFalse(found);
        (bool revealed, uint32 index, Kind kind, uint64 samples) = jobs.contribution(job, 1, nodeAt(1));
        vm.assertTrue(revealed && index == 1 && kind == Kind.Update && samples == 64);
        (revealed, , , ) = jobs.contribution(job, 1, nodeAt(5));
        vm.assertFalse(revealed);
    }

    function test_a_lap_is_sealed_when_it_ends() public {
        JobTerms memory t = terms();
        t.mode = Mode.Chained;
        (t.minNodes, t.quorum) = (1, 1);
        JobId job = create(t);
        joinNodes(job, 0, 1);
        vm.roll(2000);
        vm.prank(nodeAt(0));
        jobs.hop(job, 1, true, SPEC, 1);
        vm.roll(2005);
        vm.prank(nodeAt(0));
        jobs.publishModel(job, 1, SPEC);
        vm.assertEq(uint256(jobs.publication(job, 1).sealBlock), 2000);
    }

    // -- two halves ------------------------------------------------------------------------------------------------------

    function test_the_desk_alone_opens_no_job() public {
        JobDesk desk = TrainingJobs(address(jobs)).desk();
        refuse(requester, abi.encodeWithSelector(IJobRecord.NotByItself.selector));
        desk.createJob(terms());
    }

    function test_what_neither_half_knows_is_refused() public {
        (bool answered, ) = address(jobs).call(abi.encodeWithSignature("mint(address)", requester));
        vm.assertFalse(answered);
        (answered, ) = address(jobs).call{value: 0}("");
        vm.assertFalse(answered);
    }

    /// @dev With 1 to 49 % of members withholding, a round still closes, and each of them loses its bond.
    function testFuzz_griefers_pay_and_the_round_closes(uint256 silent) public {
        uint256 count = 12;
        silent = bound(silent, 1, 5);
        JobId job = inReveal(count);
        revealNodes(job, count - silent);
        toDeadline(job);
        jobs.advance(job);
        publishAs(job, drawn(job));
        for (uint256 i = 0; i < count; ++i) {
            if (i >= count - silent) jobs.punish(job, 1, nodeAt(i));
            vm.assertEq(registry.stakeOf(nodeAt(i)), i >= count - silent ? STAKE - BOND : STAKE);
        }
        vm.assertEq(jobs.job(job).expected, count - silent);
    }
}
