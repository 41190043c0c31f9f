# SPDX-License-Identifier: MIT
"""The tables of a journal, and the scripts that update older ones."""

from __future__ import annotations

#: In the header of the SQLite file: the id of journals ("pbjl"), and the version of the tables.
APPLICATION_ID = 0x70626A6C
VERSION = 3

#: One SQL script for each version, which updates the tables from the version before. A delivery's
#: number combines the numbers of its event and its handler: see `records`. An event stays in
#: `events` while one of its deliveries is pending or dead, or for as long as `keep` says.
MIGRATIONS = (
    """
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value NOT NULL
    ) WITHOUT ROWID;

    CREATE TABLE handlers (
        number INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL UNIQUE
    );

    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        parent_id INTEGER,
        published_at REAL NOT NULL,
        topic TEXT,
        type_name TEXT NOT NULL,
        given_id TEXT,
        form INTEGER NOT NULL,
        data BLOB NOT NULL
    );

    -- Not finished. due_at is 0 for a first attempt that is not delayed.
    CREATE TABLE pending (
        number INTEGER PRIMARY KEY,
        attempts INTEGER NOT NULL,
        due_at REAL NOT NULL,
        outcomes BLOB
    );

    -- Failed for good: dead letters.
    CREATE TABLE dead (
        number INTEGER PRIMARY KEY,
        attempts INTEGER NOT NULL,
        failed_at REAL NOT NULL,
        quarantined INTEGER NOT NULL,
        outcomes BLOB NOT NULL
    );

    -- Finished and kept: with an id that the publisher gave, or as `keep` says. succeeded is 0 for
    -- a dead letter that was replayed or cleared.
    CREATE TABLE done (
        number INTEGER PRIMARY KEY,
        succeeded INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        finished_at REAL NOT NULL,
        form INTEGER NOT NULL,
        data BLOB
    );

    -- Dead letters that the command line asks the bus to run again.
    CREATE TABLE asked (
        number INTEGER PRIMARY KEY
    );

    -- Ids that publishers gave.
    CREATE TABLE ids (
        given_id TEXT PRIMARY KEY,
        event_id INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- Jobs.
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        -- Numbers of the jobs around it, parted by spaces.
        inside TEXT NOT NULL,
        left_block INTEGER NOT NULL,
        touched_at REAL NOT NULL,
        -- NULL until the job is done.
        done_at REAL,
        succeeded INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        cancelled INTEGER NOT NULL
    );

    -- Open deliveries of jobs. Their ends are counted in `jobs`.
    CREATE TABLE owned (
        number INTEGER NOT NULL,
        job INTEGER NOT NULL,
        PRIMARY KEY (number, job)
    ) WITHOUT ROWID;

    -- Schedules: the last tick of each that was published or left out, or else its beginning.
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY,
        spec TEXT NOT NULL,
        last_at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- NULL unless the job was cancelled by a call: later runs cancel its deliveries too.
    ALTER TABLE jobs ADD COLUMN cancelled_at REAL;
    """,
)
