//! The tables. Hashes are text in base 32, as in URLs; lists are text with one item to a word or line, as in a narinfo.

use gf_database::{Migration, Migrations};

/// What the database must be opened with.
pub const MIGRATIONS: Migrations = Migrations {
    service: "nix",
    steps: &[
        Migration { name: "caches, archives, paths", forward: CREATE, back: DROP },
        Migration { name: "announced paths, blobs to be let go, uploads", forward: ADD_FACTS, back: REMOVE_FACTS },
    ],
};

const CREATE: &str = "
-- A cache. `owner` is the number of its tenant in the store.
CREATE TABLE nix_caches (
    id BIGINT PRIMARY KEY,
    name {text} NOT NULL UNIQUE,
    tenant {text} NOT NULL,
    owner BIGINT NOT NULL,
    signing_key {text} NOT NULL,
    settings {text} NOT NULL,
    created_s BIGINT NOT NULL
);

-- An archive that a tenant uploaded: what it is in the store. The store was promised it until `kept_until_s`.
CREATE TABLE nix_archives (
    owner BIGINT NOT NULL,
    nar_hash {text} NOT NULL,
    nar_size BIGINT NOT NULL,
    root {text} NOT NULL,
    blobs {text} NOT NULL,
    created_s BIGINT NOT NULL,
    kept_until_s BIGINT NOT NULL,
    PRIMARY KEY (owner, nar_hash)
);
CREATE INDEX nix_archives_by_promise ON nix_archives (kept_until_s);

-- The file that an archive came in, by which clients know it until they read a narinfo of ours.
CREATE TABLE nix_archive_files (
    owner BIGINT NOT NULL,
    file_hash {text} NOT NULL,
    compression {text} NOT NULL,
    nar_hash {text} NOT NULL,
    PRIMARY KEY (owner, file_hash, compression),
    FOREIGN KEY (owner, nar_hash) REFERENCES nix_archives (owner, nar_hash) ON DELETE CASCADE
);
CREATE INDEX nix_archive_files_by_archive ON nix_archive_files (owner, nar_hash);

-- A path of a cache. `waiting` counts the references that it waits for: it is visible when there is none. With an
-- `upstream`, its archive may not be here yet, and is at `upstream_url`.
CREATE TABLE nix_paths (
    cache BIGINT NOT NULL REFERENCES nix_caches (id) ON DELETE CASCADE,
    hash {text} NOT NULL,
    name {text} NOT NULL,
    nar_hash {text} NOT NULL,
    nar_size BIGINT NOT NULL,
    refs {text} NOT NULL,
    deriver {text},
    system {text},
    content_address {text},
    signatures {text} NOT NULL,
    waiting BIGINT NOT NULL,
    upstream {text},
    upstream_url {text},
    upstream_compression {text},
    created_s BIGINT NOT NULL,
    used_s BIGINT NOT NULL,
    served_s BIGINT NOT NULL,
    narinfos_served BIGINT NOT NULL,
    archives_read BIGINT NOT NULL,
    PRIMARY KEY (cache, hash)
);
CREATE INDEX nix_paths_by_archive ON nix_paths (nar_hash);

-- What paths wait for.
CREATE TABLE nix_awaited (
    cache BIGINT NOT NULL,
    reference {text} NOT NULL,
    path {text} NOT NULL,
    PRIMARY KEY (cache, reference, path),
    FOREIGN KEY (cache, path) REFERENCES nix_paths (cache, hash) ON DELETE CASCADE
);
CREATE INDEX nix_awaited_by_path ON nix_awaited (cache, path);

-- Paths that stay with all that they refer to. `until_s` is absent for ever.
CREATE TABLE nix_pins (
    cache BIGINT NOT NULL REFERENCES nix_caches (id) ON DELETE CASCADE,
    name {text} NOT NULL,
    path {text} NOT NULL,
    created_s BIGINT NOT NULL,
    until_s BIGINT,
    PRIMARY KEY (cache, name)
);

-- Small documents that clients write and read: realisations, build traces, debug information.
CREATE TABLE nix_documents (
    cache BIGINT NOT NULL REFERENCES nix_caches (id) ON DELETE CASCADE,
    kind {text} NOT NULL,
    name {text} NOT NULL,
    document {text} NOT NULL,
    created_s BIGINT NOT NULL,
    PRIMARY KEY (cache, kind, name)
);

-- Build logs, which are blobs.
CREATE TABLE nix_logs (
    cache BIGINT NOT NULL REFERENCES nix_caches (id) ON DELETE CASCADE,
    derivation {text} NOT NULL,
    owner BIGINT NOT NULL,
    blob {text} NOT NULL,
    created_s BIGINT NOT NULL,
    kept_until_s BIGINT NOT NULL,
    PRIMARY KEY (cache, derivation)
);
CREATE INDEX nix_logs_by_promise ON nix_logs (kept_until_s);
";

const DROP: &str = "
DROP TABLE nix_logs;
DROP TABLE nix_documents;
DROP TABLE nix_pins;
DROP TABLE nix_awaited;
DROP TABLE nix_paths;
DROP TABLE nix_archive_files;
DROP TABLE nix_archives;
DROP TABLE nix_caches;
";

const ADD_FACTS: &str = "
-- Paths that clients asked for, were told are missing, and so are about to upload. Believed until `until_s`.
CREATE TABLE nix_announced (
    cache BIGINT NOT NULL REFERENCES nix_caches (id) ON DELETE CASCADE,
    path {text} NOT NULL,
    until_s BIGINT NOT NULL,
    PRIMARY KEY (cache, path)
);
CREATE INDEX nix_announced_by_end ON nix_announced (until_s);

-- Lists of blobs of archives that are gone: what nobody else needs of them is still to be let go.
CREATE TABLE nix_let_go (
    owner BIGINT NOT NULL,
    blobs {text} NOT NULL,
    PRIMARY KEY (owner, blobs)
);

-- A random number of the upload: what was found of one says nothing of the next.
ALTER TABLE nix_archives ADD COLUMN upload BIGINT NOT NULL DEFAULT 0;

CREATE INDEX nix_paths_waiting ON nix_paths (cache, hash) WHERE waiting > 0;
";

const REMOVE_FACTS: &str = "
DROP INDEX nix_paths_waiting;
ALTER TABLE nix_archives DROP COLUMN upload;
DROP TABLE nix_let_go;
DROP TABLE nix_announced;
";
