//! `gf nix cache use`: nix.conf and netrc of this machine.
//!
//! What always holds: a file is shown as it will change before it is touched; it is replaced as a whole or not at all; a
//! token is never shown, and written for no other host than the one that was named, nor for plain HTTP where TLS was named.
//!
//! Deliberately absent: what nix.conf includes is not read, and whether a Nix daemon lets this user name caches is not asked.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gf_nix_formats::PublicKey;

use super::remote::{CacheConfig, RemoteCache};
use crate::args::UseArgs;
use crate::failure::{Failure, FailureKind};
use crate::output::say;

pub(super) fn use_cache(args: UseArgs) -> Result<(), Failure> {
    let folder = args.conf_dir.map_or_else(usual_folder, Ok)?;
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let config = super::block_on(cache.config())?;
    // Who only reads what everybody may needs no secret in a file.
    let token = cache.client.token().filter(|_| args.push || !config.is_public).cloned();
    if args.push && token.is_none() {
        let message = "there is no token to push with: set GF_TOKEN, or store one with `gf login`";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    if token.is_some() {
        check_host(&config, &cache.client.url())?;
    }
    let changes = changes(&folder, &config, token.as_deref())?;
    if changes.is_empty() {
        say(format!("Nix on this machine uses {} already; nothing is to be done", cache.name));
        return Ok(());
    }
    for change in &changes {
        say(format!("{} gets\n{}", change.file.display(), change.shown));
    }
    if !args.yes && !agreed()? {
        return Err(Failure::failed("nothing was changed"));
    }
    fs::create_dir_all(&folder).map_err(Failure::failed)?;
    for change in &changes {
        replace(change).map_err(|error| Failure::failed(format!("cannot write {}: {error}", change.file.display())))?;
    }
    say(format!("Nix on this machine uses {} now; if a Nix daemon runs here, restart it", cache.name));
    Ok(())
}

/// A server says itself where its caches are. What it says must not lead the token to another host.
fn check_host(config: &CacheConfig, asked: &str) -> Result<(), Failure> {
    let says = config.substituter_endpoint.as_deref().unwrap_or_default();
    if asked.starts_with("https:") && !says.starts_with("https:") {
        return Err(Failure::failed(format!(
            "{asked} says that the cache is at {says:?}, where the token would go in the clear; have the proxy in front of it \
             say `X-Forwarded-Proto: https`"
        )));
    }
    if host(says).eq_ignore_ascii_case(host(asked)) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{asked} says that the cache is at {says:?}, on another host, for which no token is written; name the server as it \
         calls itself, with --server, if that is right"
    )))
}

/// A file and what it will hold.
struct Change {
    file: PathBuf,
    text: String,
    /// What is new, for people.
    shown: String,
    is_secret: bool,
}

/// What must be added so that Nix uses the cache.
fn changes(folder: &Path, config: &CacheConfig, token: Option<&str>) -> Result<Vec<Change>, Failure> {
    let (url, key) = config
        .substituter_endpoint
        .as_deref()
        .zip(config.public_key.as_deref())
        .ok_or_else(|| Failure::failed("the server does not say where the cache is, or what it signs with"))?;
    // What the server says becomes settings of this machine: a line break in it would be one of its own choosing.
    let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain(url) || !url.starts_with("http") || PublicKey::parse(key).is_err() {
        return Err(Failure::failed(format!(
            "the server names a cache as {url:?} with the key {key:?}: that cannot be"
        )));
    }
    let conf = folder.join("nix.conf");
    let before = read(&conf)?;
    let named = value_of(&before, "netrc-file").map(PathBuf::from);
    let netrc = named.unwrap_or_else(|| folder.join("netrc"));
    let mut wanted = vec![("extra-substituters", url.to_owned()), ("extra-trusted-public-keys", key.to_owned())];
    if token.is_some() {
        wanted.push(("netrc-file", netrc.display().to_string()));
    }
    let lines = wanted.into_iter().filter(|(name, value)| !is_set(&before, name, value));
    let shown: Vec<String> = lines.map(|(name, value)| format!("{name} = {value}")).collect();
    let mut changes = Vec::new();
    if !shown.is_empty() {
        let text = appended(&before, &shown);
        changes.push(Change { file: conf, text, shown: indented(&shown), is_secret: false });
    }
    if let Some(token) = token {
        let before = read(&netrc)?;
        let host = host(url);
        let line = |password: &str| format!("machine {host} login gf password {password}");
        if !before.lines().any(|has| has == line(token)) {
            if before.split_whitespace().any(|word| word == "macdef") {
                let message = format!("{} has macros, and is not touched: add {}", netrc.display(), line("<token>"));
                return Err(Failure::failed(message));
            }
            let text = appended(&without_machine(&before, host), &[line(token)]);
            changes.push(Change { file: netrc, text, shown: indented(&[line("(the token)")]), is_secret: true });
        }
    }
    Ok(changes)
}

/// Whether a setting, or one that adds to it, has the value among others.
fn is_set(conf: &str, name: &str, value: &str) -> bool {
    let plain = name.trim_start_matches("extra-");
    let settings = conf.lines().filter_map(|line| line.split('#').next()?.split_once('='));
    settings
        .filter(|(setting, _)| matches!(setting.trim(), setting if setting == name || setting == plain))
        .any(|(_, values)| values.split_whitespace().any(|each| each == value))
}

/// The last value of a setting, which is the one that counts.
fn value_of<'a>(conf: &'a str, name: &str) -> Option<&'a str> {
    let settings = conf.lines().filter_map(|line| line.split('#').next()?.split_once('='));
    settings.filter(|(setting, _)| setting.trim() == name).map(|(_, value)| value.trim()).next_back()
}

/// All entries but those of a host, of which the first counts. An entry may go over several lines: it ends where the next
/// one begins.
fn without_machine(netrc: &str, host: &str) -> String {
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for word in netrc.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace) {
        match (word, entries.last_mut()) {
            ("machine" | "default", _) | (_, None) => entries.push(vec![word]),
            (_, Some(entry)) => entry.push(word),
        }
    }
    let others = entries.iter().filter(|entry| !(entry.first() == Some(&"machine") && entry.get(1) == Some(&host)));
    others.map(|entry| entry.join(" ") + "\n").collect()
}

/// Of a URL; netrc knows no ports.
fn host(url: &str) -> &str {
    let authority = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn appended(before: &str, lines: &[String]) -> String {
    let mut text = before.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &lines.join("\n") + "\n"
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn read(file: &Path) -> Result<String, Failure> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", file.display()))),
    }
}

/// Writes another file and puts it in the place of this one. Links are followed: some keep their nix.conf elsewhere.
fn replace(change: &Change) -> io::Result<()> {
    let file = fs::canonicalize(&change.file).unwrap_or_else(|_| change.file.clone());
    let new = file.with_extension("gf-new");
    let _ = fs::remove_file(&new);
    let mode = if change.is_secret { 0o600 } else { 0o644 };
    let mut writer = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    writer.write_all(change.text.as_bytes())?;
    writer.sync_all()?;
    if let Ok(metadata) = fs::metadata(&file).map(|metadata| metadata.permissions())
        && !change.is_secret
    {
        fs::set_permissions(&new, metadata)?;
    }
    fs::rename(&new, &file)
}

fn usual_folder() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/etc/nix"));
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let none = || Failure::new(FailureKind::Usage, "HOME is not set: name the folder of nix.conf with --conf-dir DIR");
    Ok(config.ok_or_else(none)?.join("nix"))
}

fn agreed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(FailureKind::Usage, "nobody is there to ask: --yes agrees to this"));
    }
    let _ = write!(io::stderr(), "Write this? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config() -> CacheConfig {
        CacheConfig {
            substituter_endpoint: Some("http://cache.example:8980/nix/main".to_owned()),
            public_key: Some(format!("main-1:{}=", "A".repeat(43))),
            ..CacheConfig::default()
        }
    }

    #[test]
    fn what_is_there_is_kept_and_nothing_is_written_twice() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("nix.conf"), "substituters = https://other.example\nmax-jobs = 2").unwrap();
        fs::write(folder.path().join("netrc"), "machine cache.example password old\nmachine b password c\n").unwrap();
        let first = changes(folder.path(), &config(), Some("s3cret")).unwrap();
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|change| !change.shown.contains("s3cret")));
        first.iter().for_each(|change| replace(change).unwrap());

        let conf = fs::read_to_string(folder.path().join("nix.conf")).unwrap();
        assert!(
            conf.starts_with("substituters = https://other.example\nmax-jobs = 2\nextra-substituters = "),
            "{conf}"
        );
        let netrc = fs::read_to_string(folder.path().join("netrc")).unwrap();
        assert_eq!(netrc, "machine b password c\nmachine cache.example login gf password s3cret\n");
        let mode = fs::metadata(folder.path().join("netrc")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(changes(folder.path(), &config(), Some("s3cret")).unwrap().is_empty());
    }

    #[test]
    fn an_entry_of_several_lines_goes_as_a_whole() {
        let netrc = "machine a\n  login b\n  password c\nmachine h\n  login d\n  password e\ndefault login f\n";
        assert_eq!(without_machine(netrc, "h"), "machine a login b password c\ndefault login f\n");
    }

    #[test]
    fn a_server_cannot_add_settings_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let url = Some("http://host/nix/main\npost-build-hook = /tmp/x".to_owned());
        assert!(changes(folder.path(), &CacheConfig { substituter_endpoint: url, ..config() }, None).is_err());
        let key = Some("main-1:abc\nbuilders = x".to_owned());
        assert!(changes(folder.path(), &CacheConfig { public_key: key, ..config() }, None).is_err());
    }

    #[test]
    fn the_token_goes_to_no_other_host_than_was_named() {
        let says = |url: &str| CacheConfig { substituter_endpoint: Some(url.to_owned()), ..config() };
        for (url, asked, expected) in [
            ("http://cache.example:8980/nix/main", "http://cache.example:8980", true),
            ("https://Cache.example/nix/main", "http://cache.example:8980/", true),
            ("http://evil.example/nix/main", "http://cache.example:8980", false),
            ("http://cache.example@evil.example/nix/main", "http://cache.example", false),
            ("", "http://cache.example", false),
            ("https://cache.example/nix/main", "https://cache.example", true),
            ("http://cache.example/nix/main", "https://cache.example", false),
        ] {
            assert_eq!(check_host(&says(url), asked).is_ok(), expected, "{url} {asked}");
        }
    }

    #[test]
    fn the_netrc_that_is_named_is_the_one_that_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let netrc = folder.path().join("mine");
        fs::write(folder.path().join("nix.conf"), format!("netrc-file = {}\n", netrc.display())).unwrap();
        let changed = changes(folder.path(), &config(), Some("t")).unwrap();
        assert!(changed.iter().any(|change| change.file == netrc));
        assert!(!changed.iter().any(|change| change.text.matches("netrc-file").count() > 1));
    }

    #[test]
    fn settings_are_found_with_and_without_extra() {
        assert!(is_set("substituters = a http://x # c", "extra-substituters", "http://x"));
        assert!(is_set("extra-substituters=http://x", "extra-substituters", "http://x"));
        assert!(!is_set("# extra-substituters = http://x", "extra-substituters", "http://x"));
        assert!(!is_set("extra-substituters = http://x/y", "extra-substituters", "http://x"));
    }

    #[test]
    fn a_host_is_taken_out_of_its_url() {
        assert_eq!(host("http://a.example:1/nix/main"), "a.example");
        assert_eq!(host("https://[::1]:8980/nix"), "::1");
    }
}
