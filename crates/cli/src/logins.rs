//! What `gf login` stored: a token or a certificate for each server, in a file of its user alone.
//!
//! What always holds: a login is found by the whole URL of its server, and a file that others can read is not used. Keys of
//! certificates stay where they are.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};

/// What is presented to one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub(crate) struct Login {
    pub(crate) token: Option<String>,
    pub(crate) certificate: Option<ClientCertificate>,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientCertificate {
    pub(crate) client_cert: PathBuf,
    pub(crate) client_key: PathBuf,
}

/// As it stands in the file: a token by itself, as always.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Token(String),
    Certificate(ClientCertificate),
}

impl From<Stored> for Login {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Token(token) => Self { token: Some(token), certificate: None },
            Stored::Certificate(certificate) => Self { token: None, certificate: Some(certificate) },
        }
    }
}

impl From<Login> for Stored {
    fn from(login: Login) -> Self {
        match (login.token, login.certificate) {
            (None, Some(certificate)) => Self::Certificate(certificate),
            (token, _) => Self::Token(token.unwrap_or_default()),
        }
    }
}

/// The longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What is presented to a server, `http://HOST:PORT` or `https://HOST:PORT`.
pub(crate) fn login_for(server: &str) -> Result<Login, Failure> {
    let Some(path) = file() else { return Ok(Login::default()) };
    Ok(read(&path)?.remove(server.trim_end_matches('/')).unwrap_or_default())
}

/// All that are stored.
fn read(path: &Path) -> Result<BTreeMap<String, Login>, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| {
        let message = format!("{} cannot be used: {reason}; run `gf login` again", path.display());
        Failure::new(FailureKind::Usage, message)
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(wrong(&error)),
    };
    let mode = file.metadata().map_err(|error| wrong(&error))?.mode();
    if mode & 0o077 != 0 {
        return Err(wrong(&"others can read it"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| wrong(&error))?;
    serde_json::from_slice(&text).map_err(|error| wrong(&error))
}

/// Stores a login for a server instead of the one that was there, or with `None` forgets that. Whoever reads meanwhile
/// sees the one or the other.
pub(crate) fn store(server: &str, login: Option<Login>) -> Result<(), Failure> {
    let path = file().ok_or_else(|| Failure::failed("there is no home folder to store the token in: set HOME"))?;
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{} cannot be written: {error}", path.display()));
    let folder = path.parent().unwrap_or(&path);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed(&error))?;
    let mut logins = read(&path)?;
    let server = server.trim_end_matches('/');
    match login {
        Some(login) => logins.insert(server.to_owned(), login),
        None => logins.remove(server),
    };
    let text = serde_json::to_vec_pretty(&logins).map_err(|error| failed(&error))?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    });
    written.map_err(|error| {
        // What is half written is of no use.
        let _ = std::fs::remove_file(&new);
        failed(&error)
    })
}

/// Where they are; `None` when the user has no home.
fn file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(root.join("gloriousflywheel").join("logins.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_they_stand_in_the_file() {
        let text = r#"{"http://a:1":"s3cret","https://b":{"client_cert":"/c.pem","client_key":"/k.pem"}}"#;
        let logins: BTreeMap<String, Login> = serde_json::from_str(text).unwrap();
        assert_eq!(logins["http://a:1"].token.as_deref(), Some("s3cret"));
        let certificate = logins["https://b"].certificate.as_ref().unwrap();
        assert_eq!(certificate.client_key, Path::new("/k.pem"));
        assert_eq!(serde_json::to_string(&logins).unwrap(), text);
    }
}
