// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IJobRecord} from "../interfaces/IJobRecord.sol";
import {Member} from "../types/Job.sol";
import {JobId, Payee} from "../types/Types.sol";

/// @notice Who and what can earn in a job, and its data sets, each by number from 0. Numbers stored with an asset count
/// from 1.
struct PayeeBook {
    uint32 count;
    uint32 datasets;
    mapping(uint32 index => Payee) payees;
    mapping(uint64 asset => uint32) numberOf;
    mapping(uint32 place => uint64) datasetAt;
    mapping(uint64 asset => uint32) placeOf;
}

/// @title The payees of a job
/// @notice Numbers are given once and for all: a payee's place in every settlement's tree.
library Payees {
    /// @notice Gives an account a number, unless it has one.
    function add(PayeeBook storage book, JobId job, address account, Member storage member) internal returns (uint32) {
        uint32 number = member.payee;
        if (number != 0) return number - 1;
        number = ++book.count;
        member.payee = number;
        book.payees[number - 1].account = account;
        emit IJobRecord.PayeeAdded(job, number - 1, account, 0);
        return number - 1;
    }

    /// @notice Gives an asset its number. None comes twice: model and algorithm are of different kinds, and a data set that
    /// is known has a place.
    function add(PayeeBook storage book, JobId job, uint64 asset) internal {
        uint32 number = ++book.count;
        book.numberOf[asset] = number;
        book.payees[number - 1].asset = asset;
        emit IJobRecord.PayeeAdded(job, number - 1, address(0), asset);
    }

    /// @notice Gives a data set a place among the job's, and a number, unless it has them.
    function addDataset(PayeeBook storage book, JobId job, uint64 asset) internal returns (uint32 place) {
        place = book.placeOf[asset];
        if (place != 0) return place - 1;
        place = book.datasets++;
        book.placeOf[asset] = place + 1;
        book.datasetAt[place] = asset;
        add(book, job, asset);
    }
}
