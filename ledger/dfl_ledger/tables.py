"""The tables of the reward protocol: who judges and is paid, what was measured, who was punished. See
schema.py.
"""

PROTOCOL_TABLES = """
CREATE TABLE assets (
    asset INTEGER PRIMARY KEY,
    owner TEXT NOT NULL COLLATE NOCASE,
    kind INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    licence TEXT NOT NULL,  -- 0x hex
    uses INTEGER NOT NULL,
    price_bps INTEGER NOT NULL,
    parents TEXT NOT NULL,  -- JSON list of assets
    revoked INTEGER NOT NULL DEFAULT 0,
    minted_block INTEGER NOT NULL
) STRICT;
CREATE INDEX assets_by_owner ON assets (owner);

CREATE TABLE slashes (
    seq INTEGER PRIMARY KEY,
    node TEXT NOT NULL COLLATE NOCASE REFERENCES nodes ON DELETE CASCADE,
    reporter TEXT NOT NULL COLLATE NOCASE,
    slashed_wei TEXT NOT NULL,
    reward_wei TEXT NOT NULL,
    tx TEXT NOT NULL,
    block INTEGER NOT NULL
) STRICT;
CREATE INDEX slashes_by_node ON slashes (node);

-- who or what earns in a job, by number: account is the zero address beside an asset
CREATE TABLE payees (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    idx INTEGER NOT NULL,
    account TEXT NOT NULL COLLATE NOCASE,
    asset INTEGER NOT NULL,
    PRIMARY KEY (job, idx)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX payees_by_name ON payees (job, account, asset);

-- which node says that it trains on which data set
CREATE TABLE datasets (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    place INTEGER NOT NULL,
    node TEXT NOT NULL COLLATE NOCASE,
    asset INTEGER NOT NULL,
    PRIMARY KEY (job, place, node)
) STRICT, WITHOUT ROWID;

-- commitments to the rows that nodes train on
CREATE TABLE shards (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    node TEXT NOT NULL COLLATE NOCASE,
    shard TEXT NOT NULL,  -- 0x hex
    PRIMARY KEY (job, node)
) STRICT, WITHOUT ROWID;

-- of validation rows: the shard at a position is for the round that was published as the position-th, from 0
CREATE TABLE shard_keys (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    position INTEGER NOT NULL,
    key TEXT NOT NULL,  -- 0x hex
    block INTEGER NOT NULL,
    late_s INTEGER,  -- seconds after its round's publication, 0 if before, NULL until blocks' times are read
    PRIMARY KEY (job, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX shard_keys_undated ON shard_keys (job) WHERE late_s IS NULL;

CREATE TABLE panels (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    panel INTEGER NOT NULL,
    subjects INTEGER NOT NULL,  -- scores of a vector
    drawn_block INTEGER NOT NULL,
    tx TEXT NOT NULL,
    PRIMARY KEY (job, round, panel)
) STRICT, WITHOUT ROWID;

CREATE TABLE seats (
    job INTEGER NOT NULL,
    round INTEGER NOT NULL,
    panel INTEGER NOT NULL,
    seat INTEGER NOT NULL,
    evaluator TEXT NOT NULL COLLATE NOCASE,
    weight TEXT NOT NULL,  -- wei
    committed_tx TEXT,
    revealed_tx TEXT,
    vector BLOB,  -- 8 bytes a score
    withheld_tx TEXT,  -- punished for showing no scores
    penalized_tx TEXT,  -- punished for a score far from the median
    PRIMARY KEY (job, round, panel, seat),
    FOREIGN KEY (job, round, panel) REFERENCES panels ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX seats_by_evaluator ON seats (evaluator, job, round);

-- a row once its rows were opened or it failed
CREATE TABLE audits (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    audit INTEGER NOT NULL,
    node TEXT NOT NULL COLLATE NOCASE,
    boxes TEXT,  -- where the node's rows lie, sealed to each juror
    appeal_until INTEGER,  -- Unix seconds, NULL if it has not failed
    appealed INTEGER NOT NULL DEFAULT 0,
    upheld INTEGER,  -- NULL: not decided
    PRIMARY KEY (job, round, audit)
) STRICT, WITHOUT ROWID;

CREATE TABLE bans (
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    node TEXT NOT NULL COLLATE NOCASE,
    PRIMARY KEY (job, node)
) STRICT, WITHOUT ROWID;

-- what nodes lost a bond for
CREATE TABLE offences (
    seq INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    node TEXT NOT NULL COLLATE NOCASE,
    kind TEXT NOT NULL,
    tx TEXT NOT NULL,
    block INTEGER NOT NULL
) STRICT;
CREATE INDEX offences_by_job ON offences (job, round);
CREATE INDEX offences_by_node ON offences (node);

-- settlements that were shown to be wrong, or fell with an earlier one
CREATE TABLE overturned (
    seq INTEGER NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    round INTEGER NOT NULL,
    settler TEXT NOT NULL COLLATE NOCASE,
    root TEXT NOT NULL,
    challenger TEXT NOT NULL COLLATE NOCASE,
    why INTEGER,  -- enum Fault, NULL if it fell with an earlier one
    tx TEXT NOT NULL,
    block INTEGER NOT NULL,
    PRIMARY KEY (job, round, seq)
) STRICT, WITHOUT ROWID;
"""
