//! The tables of tenancy.

use gf_database::{Migration, Migrations};

/// How they come to be. A database of [`crate::Tokens`] and [`crate::AuditLog`] went through these.
pub const MIGRATIONS: Migrations = Migrations {
    service: "tenancy",
    steps: &[
        Migration {
            name: "tokens",
            forward: "
                CREATE TABLE tenancy_token (
                    id {text} PRIMARY KEY,
                    fingerprint {bytes} NOT NULL UNIQUE,
                    name {text} NOT NULL,
                    grants {text} NOT NULL,
                    issued_by {text} NOT NULL,
                    issued_s BIGINT NOT NULL,
                    expires_s BIGINT NOT NULL,
                    revoked_s BIGINT,
                    revoked_by {text},
                    used_s BIGINT
                );",
            back: "DROP TABLE tenancy_token;",
        },
        Migration {
            name: "audit log",
            forward: "
                CREATE TABLE tenancy_audit (
                    number BIGINT PRIMARY KEY,
                    at_ms BIGINT NOT NULL,
                    who {text} NOT NULL,
                    source {text} NOT NULL,
                    action {text} NOT NULL,
                    subject {text} NOT NULL,
                    outcome {text} NOT NULL,
                    detail {text} NOT NULL,
                    trace {text} NOT NULL,
                    hash {bytes} NOT NULL
                );
                CREATE INDEX tenancy_audit_who ON tenancy_audit (who, number);",
            back: "DROP TABLE tenancy_audit;",
        },
        Migration {
            name: "exchanged tokens",
            forward: "
                CREATE TABLE tenancy_exchanged (
                    id {text} PRIMARY KEY,
                    issuer {text} NOT NULL,
                    subject {text} NOT NULL,
                    rules {text} NOT NULL,
                    source {bytes} NOT NULL,
                    ends_s BIGINT NOT NULL
                );
                CREATE INDEX tenancy_exchanged_subject ON tenancy_exchanged (issuer, subject);
                CREATE INDEX tenancy_exchanged_source ON tenancy_exchanged (source);
                CREATE INDEX tenancy_exchanged_end ON tenancy_exchanged (ends_s);
                CREATE TABLE tenancy_cut_off (
                    id {text} PRIMARY KEY,
                    issuer {text},
                    subject {text},
                    rule {text},
                    until_s BIGINT NOT NULL
                );",
            back: "DROP TABLE tenancy_cut_off; DROP TABLE tenancy_exchanged;",
        },
        Migration {
            name: "makers of tokens",
            forward: "CREATE INDEX tenancy_token_issued_by ON tenancy_token (issued_by);",
            back: "DROP INDEX tenancy_token_issued_by;",
        },
        Migration {
            name: "order of tokens",
            forward: "CREATE INDEX tenancy_token_order ON tenancy_token (issued_s DESC, id);",
            back: "DROP INDEX tenancy_token_order;",
        },
        Migration {
            name: "revoked tokens of Attic's format",
            forward: "
                CREATE TABLE tenancy_refused (
                    fingerprint {bytes} PRIMARY KEY,
                    until_s BIGINT NOT NULL,
                    revoked_s BIGINT NOT NULL,
                    revoked_by {text} NOT NULL
                );
                CREATE INDEX tenancy_refused_until ON tenancy_refused (until_s);",
            back: "DROP TABLE tenancy_refused;",
        },
        Migration {
            name: "tenants of records",
            forward: "
                ALTER TABLE tenancy_audit ADD COLUMN tenant {text} NOT NULL DEFAULT '';
                CREATE INDEX tenancy_audit_tenant ON tenancy_audit (tenant, number);",
            back: "DROP INDEX tenancy_audit_tenant; ALTER TABLE tenancy_audit DROP COLUMN tenant;",
        },
        Migration {
            name: "tenants of exchanged tokens",
            forward: "ALTER TABLE tenancy_exchanged ADD COLUMN tenant {text} NOT NULL DEFAULT '';",
            back: "ALTER TABLE tenancy_exchanged DROP COLUMN tenant;",
        },
    ],
};

#[cfg(test)]
mod tests {
    use gf_database::sql;

    use super::*;
    use crate::audit::{AuditLog, Event, Outcome, Search, Verdict};
    use crate::testing::Place;
    use crate::{Principal, TenantName};

    #[tokio::test]
    async fn every_step_goes_back_and_forward_and_the_log_stays_whole() {
        for place in [Place::sqlite(), Place::postgres()] {
            let database = place.open().await;
            let log = AuditLog::new(database.clone());
            let tenant = TenantName::new("org-acme").unwrap();
            let event = Event::new(&Principal::Server, "cache.create", "ci", Outcome::Done).of(Some(&tenant));
            log.append(&[event]).await.unwrap();
            let steps = MIGRATIONS.steps.len();
            // Before this step there is no audit log.
            for step in (2..steps).rev() {
                database.migrate(&MIGRATIONS, step).await.unwrap();
                let records = database.all(sql("SELECT number FROM tenancy_audit")).await.unwrap();
                assert_eq!(records.len(), 1, "{}", MIGRATIONS.steps[step].name);
            }
            database.migrate(&MIGRATIONS, steps).await.unwrap();
            assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(1, _)));
            // Of which tenant a record was is forgotten with the column: it is shown to who administers everything.
            let of_tenant = Search { tenants: Some(vec!["org-acme".to_owned()]), ..Search::default() };
            assert!(log.search(&of_tenant).await.unwrap().is_empty());
            assert_eq!(log.search(&Search::default()).await.unwrap().len(), 1);
            database.migrate(&MIGRATIONS, 0).await.unwrap();
            database.migrate(&MIGRATIONS, steps).await.unwrap();
        }
    }
}
