-- The state file of the daemon. Append-only: a migration that has been released is never edited.
-- PRAGMA user_version counts the migrations that were applied.

-- migration 1: pods, containers, node-wide values, and records that could not be read
CREATE TABLE pods (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    document BLOB NOT NULL
);
CREATE TABLE containers (
    id       TEXT PRIMARY KEY,
    pod_id   TEXT NOT NULL,
    name     TEXT NOT NULL UNIQUE,
    document BLOB NOT NULL
);
CREATE INDEX containers_by_pod ON containers (pod_id);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE quarantine (
    origin   TEXT NOT NULL,
    id       TEXT NOT NULL,
    document BLOB NOT NULL,
    reason   TEXT NOT NULL
);
