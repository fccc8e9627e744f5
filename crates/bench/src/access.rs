//! What access control costs a request, and what it tells whom it refuses.
//!
//! These rows are this program's own business: finding a token is timed without a server, and denials from outside, at
//! every door that a name can be tried at.

mod denials;
mod doors;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_database::{Database, Location, sql, work};
use gf_digest::InstanceName;
use gf_tenancy::audit::Origin;
use gf_tenancy::{Access, AccessConfig, Administer, CasRead, NewToken, Principal, TenantConfig, TenantName, Tokens};

use crate::load::median;
use crate::report::Outcome;

pub(crate) use denials::denials;

/// Tokens that are good at the same time.
const TOKENS: u64 = 10_000;
/// Requests that are timed together: one is too short for the clock.
const LOOKUPS: u32 = 1000;

/// Microseconds of finding out who asks and of letting them in, among so many tokens.
pub(crate) async fn token_lookup(rounds: usize) -> anyhow::Result<Outcome> {
    let alone = lookup(0, rounds).await?;
    let among_many = lookup(TOKENS, rounds).await?;
    let note = format!("one core; {alone:.2} µs with one token, {:.2} times that with {TOKENS}", among_many / alone);
    Ok(Outcome { figure: among_many, note, ..Outcome::default() })
}

async fn lookup(others: u64, rounds: usize) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let database = Database::open(&Location::file(&folder.path().join("facts")), &[gf_tenancy::MIGRATIONS]).await?;
    fill(&database, others).await?;
    let tokens = Arc::new(Tokens::open(database).await?);
    let instance = InstanceName::new("default")?;
    let tenants = vec![TenantConfig { name: TenantName::new("default")?, instances: vec![instance.clone()] }];
    let config = AccessConfig { tenants, token: None, anonymous_read: false };
    let access = Access::new(config)?.closed().with_tokens(Arc::clone(&tokens));
    let admin = access.authorize::<Administer>(Principal::Server, &instance)?;
    let new =
        NewToken { name: "bench".into(), grants: vec!["viewer@default".parse()?], lifetime: Duration::from_secs(3600) };
    let issued = tokens.issue(&admin, new, &Origin::default()).await?;
    let round = || -> anyhow::Result<f64> {
        let began = Instant::now();
        for _ in 0..LOOKUPS {
            let who = access.authenticate(Some(issued.secret.expose()))?;
            access.authorize::<CasRead>(&who, &instance)?;
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(LOOKUPS))
    };
    let taken = (0..rounds.max(3) * 10).map(|_| round()).collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(median(taken))
}

/// Tokens of which nobody has the text.
async fn fill(database: &Database, tokens: u64) -> anyhow::Result<()> {
    let written = database.write(|transaction| {
        work(async move {
            for number in 0..i64::try_from(tokens).unwrap_or(i64::MAX) {
                let fingerprint = [&number.to_le_bytes()[..], &[7; 24]].concat();
                let insert = sql("INSERT INTO tenancy_token \
                     (id, fingerprint, name, grants, issued_by, issued_s, expires_s) \
                     VALUES ($1, $2, 'bench', 'viewer@default', 'bench', 0, $3)");
                transaction.execute(insert.bind(format!("{number:010x}")).bind(fingerprint).bind(i64::MAX)).await?;
            }
            Ok::<_, gf_database::DatabaseError>(())
        })
    });
    Ok(written.await?)
}
