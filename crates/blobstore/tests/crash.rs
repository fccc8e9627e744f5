//! A process that is killed, two hundred times over: fifty times in each of four tests, which run side by side.
//!
//! This program starts itself as a victim, which opens a store and lets writers, readers, a splitter and a collector
//! loose on it; each acknowledgement goes out on a pipe before the next step, with the time at which it was asked for.
//! At a random moment it is killed by SIGKILL. The store is opened again: what was acknowledged and is within its lease reads back, every entry is whole
//! and names blobs that are there, and nothing has other bytes. The leases are short and the store is small, so that
//! it evicts and compacts all the time.
//!
//! `GF_SEED` repeats a run as far as the machine allows: when the kill falls is up to it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, EntryKey, EntryTable, ErrorKind, NewBlob, OwnerId, Repair,
    StoreConfig, StoreError,
};
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_testkit::blob_store_suite::{noise, read_all};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

const NAMES: [&str; 4] = [
    "what_was_acknowledged_survives_fifty_kills",
    "what_was_acknowledged_survives_fifty_other_kills",
    "what_was_acknowledged_survives_fifty_more_kills",
    "what_was_acknowledged_survives_the_last_fifty_kills",
];
const ROUNDS: u32 = 50;
const VERIFY_EVERY: u32 = 10;
const LEASE: Duration = Duration::from_secs(3);
/// The clocks of two processes may count their seconds from different moments.
const CLOCKS_DIFFER: Duration = Duration::from_millis(500);
const OWNER: OwnerId = OwnerId(1);
const ENTRIES: u64 = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--victim", folder, seed] => runtime().block_on(victim(Path::new(folder), seed.parse().unwrap())),
        _ => harness(&arguments),
    }
}

/// As much of the test harness' command line as cargo and nextest use.
fn harness(arguments: &[String]) {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let filters = filters(arguments);
    let is_meant = |name: &str, filter: &str| if has("--exact") { name == filter } else { name.contains(filter) };
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| is_meant(name, filter));
    for name in NAMES.into_iter().filter(|name| is_wanted(name) && !has("--ignored")) {
        if has("--list") {
            println!("{name}: test");
        } else {
            let seed = std::env::var("GF_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
            println!("test {name} with GF_SEED={seed}");
            let begin = now();
            runtime().block_on(kill_again_and_again(seed));
            println!("test {name} ... ok, {ROUNDS} rounds in {} s", since(begin).as_secs());
        }
    }
}

/// What is no option, and no value of one.
fn filters(arguments: &[String]) -> Vec<&str> {
    let mut filters = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--format" | "--test-threads" | "--color" | "--skip" | "-Z" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            filter => filters.push(filter),
        }
    }
    filters
}

/// The time since the machine began, which all processes agree on.
fn now() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap()
}

fn since(moment: Duration) -> Duration {
    now().saturating_sub(moment)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(folder: &Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig {
        capacity_bytes: 24 << 20,
        lease: LEASE,
        sync_window: Duration::from_millis(50),
        large_blob_bytes: 20_000,
        ..StoreConfig::new(folder.to_owned())
    };
    DiskBlobStore::open(config).await.unwrap()
}

/// Number and size of a blob: its bytes follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    number: u64,
    bytes: usize,
}

impl Name {
    fn content(self) -> Vec<u8> {
        let mut content = noise(self.number, self.bytes);
        let stamp = self.number.to_le_bytes();
        let length = content.len().min(stamp.len());
        content[..length].copy_from_slice(&stamp[..length]);
        content
    }

    fn function(self) -> DigestFunction {
        DigestFunction::ALL[usize::from(self.number.is_multiple_of(2))]
    }

    fn new_blob(self) -> NewBlob {
        let bytes = self.content();
        let digest = Digest::of(self.function(), &bytes);
        NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity }
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, bytes) = text.split_once(':')?;
        Some(Self { number: number.parse().ok()?, bytes: bytes.parse().ok()? })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.number, self.bytes)
    }
}

fn entry_key(key: u64) -> EntryKey {
    EntryKey {
        table: EntryTable::ActionResult,
        owner: OWNER,
        instance: InstanceName::new("default").unwrap(),
        digest: Digest::of(DigestFunction::Sha256, &key.to_le_bytes()),
    }
}

/// What an entry holds: its version, the blobs that it names, and a check.
fn entry_value(version: u64, names: &[Name]) -> String {
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    let body = format!("{version} {}", names.join(" "));
    format!("{body} {}", Digest::of(DigestFunction::Blake3, body.as_bytes()).hash_hex().as_str())
}

fn parse_entry(value: &[u8]) -> Option<(u64, Vec<Name>)> {
    let (body, check) = std::str::from_utf8(value).ok()?.rsplit_once(' ')?;
    if Digest::of(DigestFunction::Blake3, body.as_bytes()).hash_hex().as_str() != check {
        return None;
    }
    let mut words = body.split(' ');
    let version = words.next()?.parse().ok()?;
    Some((version, words.map(Name::parse).collect::<Option<_>>()?))
}

// The victim.

struct Victim {
    store: Arc<DiskBlobStore>,
    numbers: AtomicU64,
}

fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // One write: a line is whole or not there.
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A full store is no failure; anything else is.
fn unless_full<T>(result: Result<T, StoreError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        // Some blobs are one chunk.
        Err(StoreError::NotSplit(_)) => None,
        Err(error) if error.kind() == ErrorKind::Exhausted => None,
        Err(error) => {
            say(format_args!("failed {error}"));
            None
        }
    }
}

async fn victim(folder: &Path, seed: u64) {
    let victim = Arc::new(Victim { store: open(folder).await, numbers: AtomicU64::new(seed << 32) });
    say(format_args!("open"));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..2 {
        tasks.spawn(write_small(Arc::clone(&victim), StdRng::seed_from_u64(seed * 10 + task)));
    }
    tasks.spawn(upload_large(Arc::clone(&victim), StdRng::seed_from_u64(seed * 10 + 3)));
    tasks.spawn(write_entries(Arc::clone(&victim), StdRng::seed_from_u64(seed * 10 + 4)));
    tasks.spawn(split_and_splice(Arc::clone(&victim), StdRng::seed_from_u64(seed * 10 + 5)));
    tasks.spawn(collect(Arc::clone(&victim)));
    // They never end by themselves.
    while tasks.join_next().await.is_some() {}
}

impl Victim {
    fn name(&self, bytes: usize) -> Name {
        Name { number: self.numbers.fetch_add(1, Ordering::Relaxed), bytes }
    }

    async fn write(&self, names: &[Name]) -> bool {
        let blobs = names.iter().map(|name| name.new_blob()).collect();
        let asked = now().as_millis();
        let mut all = true;
        for (name, result) in names.iter().zip(self.store.write_batch(OWNER, blobs).await) {
            match unless_full(result) {
                Some(()) => say(format_args!("blob {name} {asked}")),
                None => all = false,
            }
        }
        all
    }

    async fn upload(&self, name: Name) -> bool {
        let blob = name.new_blob();
        let Some(mut upload) = unless_full(self.store.upload(OWNER, blob.digest, Encoding::Identity).await) else {
            return false;
        };
        for piece in blob.bytes.chunks(30_000) {
            if unless_full(upload.write(bytes::Bytes::copy_from_slice(piece)).await).is_none() {
                return false;
            }
        }
        let asked = now().as_millis();
        let finished = unless_full(upload.finish().await).is_some();
        if finished {
            say(format_args!("blob {name} {asked}"));
        }
        finished
    }

    async fn read_back(&self, name: Name) {
        let digest = name.new_blob().digest;
        let read = self.store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await;
        let bytes = match read {
            Ok(read) => read_all(read).await,
            Err(error) => Err(error),
        };
        // It was written a moment ago.
        if !bytes.is_ok_and(|bytes| bytes == name.content()) {
            say(format_args!("failed to read {name} back"));
        }
    }
}

async fn collect(victim: Arc<Victim>) {
    let mut every = tokio::time::interval(Duration::from_millis(25));
    loop {
        every.tick().await;
        let store = Arc::clone(&victim.store);
        let collected = tokio::task::spawn_blocking(move || store.collect(1 << 20)).await;
        unless_full(collected.unwrap());
    }
}

async fn write_small(victim: Arc<Victim>, mut random: StdRng) {
    loop {
        let count = random.random_range(1..8);
        let names: Vec<Name> = (0..count).map(|_| victim.name(random.random_range(1..9000))).collect();
        if victim.write(&names).await {
            victim.read_back(names[0]).await;
        }
        tokio::task::yield_now().await;
    }
}

async fn upload_large(victim: Arc<Victim>, mut random: StdRng) {
    loop {
        let name = victim.name(random.random_range(20_001..200_000));
        if victim.upload(name).await {
            victim.read_back(name).await;
        }
        tokio::task::yield_now().await;
    }
}

async fn write_entries(victim: Arc<Victim>, mut random: StdRng) {
    loop {
        let key = random.random_range(0..ENTRIES);
        let version = victim.numbers.fetch_add(1, Ordering::Relaxed);
        if random.random_bool(0.1) {
            say(format_args!("removing {key} {version}"));
            if unless_full(victim.store.remove_entry(&entry_key(key)).await).is_some() {
                say(format_args!("removed {key} {version}"));
            }
            continue;
        }
        let names: Vec<Name> = (0..3).map(|_| victim.name(random.random_range(1..5000))).collect();
        if victim.write(&names).await {
            let value = entry_value(version, &names);
            let asked = now().as_millis();
            if unless_full(victim.store.put_entry(&entry_key(key), value.into()).await).is_some() {
                say(format_args!("entry {key} {version} {asked}"));
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn split_and_splice(victim: Arc<Victim>, mut random: StdRng) {
    loop {
        let name = victim.name(random.random_range(900_000..1_200_000));
        if victim.upload(name).await {
            let digest = name.new_blob().digest;
            if let Some(mut chunks) = unless_full(victim.store.split(OWNER, digest).await) {
                chunks.reverse();
                let mut turned = Vec::new();
                for chunk in &chunks {
                    let read = victim.store.read(OWNER, *chunk, ByteRange::ALL, Accept::Identity).await;
                    match read {
                        Ok(read) => turned.extend(unless_full(read_all(read).await).unwrap_or_default()),
                        Err(error) => say(format_args!("failed to read a chunk: {error}")),
                    }
                }
                unless_full(victim.store.splice(OWNER, Digest::of(name.function(), &turned), &chunks).await);
            }
        }
        tokio::task::yield_now().await;
    }
}

// The judge.

/// What the victims said, and when that was last asked for.
#[derive(Default)]
struct Told {
    blobs: BTreeMap<Name, Known>,
    entries: BTreeMap<u64, Entry>,
}

/// What is known of a blob. Its digest stands for its bytes: making them again at each look takes most of the time.
struct Known {
    digest: Digest,
    asked: Duration,
}

/// What is known of an entry.
#[derive(Default)]
struct Entry {
    /// The last version acknowledged; 0 when it was removed, or may have been.
    at_least: u64,
    /// The last removal acknowledged.
    removed: u64,
    asked: Duration,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().unwrap();
        let moment = |text: &str| Duration::from_millis(number(text));
        match words[..] {
            ["open"] => {}
            ["blob", name, asked] => {
                let name = Name::parse(name).unwrap();
                self.blobs.insert(name, Known { digest: name.new_blob().digest, asked: moment(asked) });
            }
            ["entry", key, version, asked] => {
                let entry = self.entries.entry(number(key)).or_default();
                entry.at_least = number(version);
                entry.asked = moment(asked);
            }
            ["removing", key, _] => self.entries.entry(number(key)).or_default().at_least = 0,
            ["removed", key, version] => self.entries.entry(number(key)).or_default().removed = number(version),
            _ => panic!("the victim says: {line}"),
        }
    }
}

fn is_leased(asked: Duration) -> bool {
    since(asked) < LEASE - CLOCKS_DIFFER
}

async fn kill_again_and_again(seed: u64) {
    // What a killed process wrote is kept by the kernel, on a disk or not: memory is quicker.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let folder = folder.path().join("store");
    let mut random = StdRng::seed_from_u64(seed);
    let mut told = Told::default();
    let mut heard = 0;
    for round in 0..ROUNDS {
        let lines = run_victim(&folder, u64::from(round) + 1, Duration::from_millis(random.random_range(0..100)));
        heard += lines.len();
        lines.iter().for_each(|line| told.hear(line));
        let store = open(&folder).await;
        check_blobs(&store, &mut told, &mut random, round).await;
        check_entries(&store, &mut told, round).await;
        if round % VERIFY_EVERY == VERIFY_EVERY - 1 {
            let report = store.verify(Repair::Yes).await.unwrap();
            assert!(report.is_clean(), "round {round}: {report:?}");
            assert_eq!(
                store.stats().used_bytes,
                bytes_on_disk(&folder),
                "round {round}: the account of space is wrong"
            );
        }
        if random.random_bool(0.3) {
            // On a slow machine no victim lives long enough to make room.
            store.collect(6 << 20).unwrap();
        }
        if random.random_bool(0.2) {
            store.close().unwrap();
        }
        if std::env::var_os("GF_PROGRESS").is_some() {
            println!("round {round}: {} acknowledgements, {:?}", lines.len(), store.stats());
        }
    }
    assert!(heard > ROUNDS as usize, "the victims did next to nothing: {heard} acknowledgements");
    println!("{heard} acknowledgements");
}

/// Starts a victim, kills it some time after it has opened the store, and returns what it said.
fn run_victim(folder: &Path, seed: u64, lifetime: Duration) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--victim").arg(folder).arg(seed.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    // Sometimes it is killed while it opens the store.
    if lifetime > Duration::from_millis(10) {
        pipe.read_line(&mut first).unwrap();
    }
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        let mut line = String::new();
        while pipe.read_line(&mut line).unwrap() > 0 {
            // The last line may be cut.
            if let Some(whole) = line.strip_suffix('\n') {
                lines.push(whole.to_owned());
            }
            line.clear();
        }
        lines
    });
    // Not synchronisation: the moment of the kill is what is varied.
    std::thread::sleep(lifetime);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

async fn check_blobs(store: &DiskBlobStore, told: &mut Told, random: &mut StdRng, round: u32) {
    let mut gone = Vec::new();
    for (name, Known { digest, asked }) in &mut told.blobs {
        // Those of this round, and some of the others: what is asked for is kept, and some must be left to go.
        if since(*asked) > Duration::from_secs(1) && random.random_bool(0.98) {
            continue;
        }
        let asks = now();
        if store.find_missing(OWNER, &[*digest]).await.unwrap().is_empty() {
            let read = store.read(OWNER, *digest, ByteRange::ALL, Accept::Identity).await;
            let read = read.unwrap_or_else(|error| panic!("round {round}: {name} is reported present: {error}"));
            let bytes = read_all(read).await.unwrap();
            assert_eq!(Digest::of(name.function(), &bytes), *digest, "round {round}: {name} has other bytes");
            *asked = asks;
        } else {
            assert!(!is_leased(*asked), "round {round}: {name} was lost within its lease");
            gone.push(*name);
        }
    }
    for name in gone {
        told.blobs.remove(&name);
    }
}

async fn check_entries(store: &DiskBlobStore, told: &mut Told, round: u32) {
    for (key, entry) in &mut told.entries {
        let Some(value) = store.get_entry(&entry_key(*key)).await.unwrap() else {
            assert!(
                !is_leased(entry.asked) || entry.at_least == 0,
                "round {round}: entry {key} was lost within its lease"
            );
            entry.at_least = 0;
            continue;
        };
        let (version, names) = parse_entry(&value).unwrap_or_else(|| panic!("round {round}: entry {key} is torn"));
        assert!(version >= entry.at_least, "round {round}: entry {key} is an old one");
        assert!(version > entry.removed, "round {round}: entry {key} was removed and is back");
        // It was written after its blobs, and says nothing about when they were last asked for.
        for name in names {
            if let Some(Known { digest, asked }) = told.blobs.get(&name)
                && is_leased(*asked)
            {
                let missing = store.find_missing(OWNER, &[*digest]).await.unwrap();
                assert!(
                    missing.is_empty() || !is_leased(*asked),
                    "round {round}: entry {key} names {name}, which is lost"
                );
            }
        }
    }
}

/// Bytes in segments and large files, those in quarantine too.
fn bytes_on_disk(folder: &Path) -> u64 {
    let mut folders = ["segments", "large", "quarantine"].map(|kind| folder.join(kind)).to_vec();
    folders.retain(|folder| folder.is_dir());
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let metadata = entry.as_ref().unwrap().metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.unwrap().path());
            } else {
                bytes += metadata.len();
            }
        }
    }
    bytes
}
