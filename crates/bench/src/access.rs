//! What access control costs a request, and what it tells whom it refuses.
//!
//! Both rows are this program's own business: finding a token is timed without a server, and denials are timed from
//! outside, by turns, for names that are there and names that are not. The statistic of the latter is the difference of
//! the medians with a 95 % interval by bootstrap: the row passes when the server does not tell them apart by more than
//! the network would.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gf_database::{Database, Location, sql, work};
use gf_digest::InstanceName;
use gf_tenancy::audit::Origin;
use gf_tenancy::{Access, AccessConfig, Administer, CasRead, NewToken, Principal, TenantConfig, TenantName, Tokens};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::median;
use crate::process::Server;
use crate::report::Outcome;

/// Tokens that are good at the same time.
const TOKENS: u64 = 10_000;
/// Requests that are timed together: one is too short for the clock.
const LOOKUPS: u32 = 1000;
/// Denials of each kind.
const DENIALS: usize = 4000;
/// Samples of the bootstrap.
const SAMPLES: usize = 400;

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

/// By how many microseconds denials for a cache that is there take longer than for one that is not: the distance of
/// that difference from zero.
pub(crate) async fn denials(gf: &Path, data_dir: &Path) -> anyhow::Result<Outcome> {
    let token = data_dir.with_extension("token");
    std::fs::write(&token, "opensesame").with_context(|| format!("write {}", token.display()))?;
    let config = format!("[access]\ntoken_file = \"{}\"\n", token.display());
    let server = Server::product_with(gf, data_dir, &config).await?;
    let mut connection = TcpStream::connect(server.url.trim_start_matches("http://")).await?;
    connection.set_nodelay(true)?;
    let body = r#"{"is_public":false}"#;
    let make = format!(
        "POST /nix/_api/v1/cache-config/there HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer opensesame\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    );
    ensure!(exchange(&mut connection, &make).await?.starts_with("HTTP/1.1 200"), "the cache was not made");
    let (mut there, mut absent) = (Vec::with_capacity(DENIALS), Vec::with_capacity(DENIALS));
    for number in 0..DENIALS + 200 {
        // By turns, and each as often the first, so that what else the machine does falls on both.
        let names = if number % 2 == 0 { ["there", "awayy"] } else { ["awayy", "there"] };
        for name in names {
            let ask = format!("GET /nix/{name}/nix-cache-info HTTP/1.1\r\nHost: b\r\n\r\n");
            let began = Instant::now();
            let answer = exchange(&mut connection, &ask).await?;
            let taken = began.elapsed().as_secs_f64() * 1e6;
            ensure!(answer.starts_with("HTTP/1.1 401"), "a denial was {answer}");
            if number >= 200 {
                if name == "there" { there.push(taken) } else { absent.push(taken) }
            }
        }
    }
    server.stop().await?;
    Ok(compare(&there, &absent))
}

fn compare(there: &[f64], absent: &[f64]) -> Outcome {
    let difference = median(there.iter().copied()) - median(absent.iter().copied());
    let mut random = SmallRng::seed_from_u64(8);
    let mut drawn: Vec<f64> =
        (0..SAMPLES).map(|_| resampled_median(there, &mut random) - resampled_median(absent, &mut random)).collect();
    drawn.sort_by(f64::total_cmp);
    let (low, high) = (drawn[SAMPLES / 40], drawn[SAMPLES - 1 - SAMPLES / 40]);
    let mut note = format!("medians {:.1} and {:.1} µs", median(there.iter().copied()), median(absent.iter().copied()));
    // Writing into a string does not fail.
    let _ = write!(note, ", difference {difference:+.2}, 95 % within {low:+.2} and {high:+.2}, {DENIALS} of each");
    Outcome { figure: low.abs().max(high.abs()), note, ..Outcome::default() }
}

fn resampled_median(times: &[f64], random: &mut SmallRng) -> f64 {
    median((0..times.len()).map(|_| times[random.random_range(0..times.len())]))
}

/// The answer to one request, whose body has a length.
async fn exchange(connection: &mut TcpStream, request: &str) -> anyhow::Result<String> {
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    let head = loop {
        ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended");
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let whole = head + length.trim().parse::<usize>()?;
    while answer.len() < whole {
        ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended");
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
