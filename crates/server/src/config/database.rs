//! `[database]`: where the facts of all services are. Without it they are in the file `facts.sqlite` of the data folder.
//!
//! What always holds: no password is in the text of the configuration. It is in a file of its own, `url_file`, or in the
//! environment: `GF_DATABASE_URL`, or what clients of PostgreSQL read, `PGPASSWORD` and `PGPASSFILE`.

use std::path::{Path, PathBuf};

use gf_database::Location;

use super::reader::Section;
use super::{parse_path, read_text};

/// The file of the data folder that is used when nothing else is said.
const FILE: &str = "facts.sqlite";

/// Where the facts are when nobody says it.
#[must_use]
pub fn default_database(data_dir: &Path) -> Location {
    Location::file(&data_dir.join(FILE))
}

pub(super) fn read(database: &mut Section<'_, '_>, folder: &Path) -> Option<Location> {
    let url = database.text("url", |text| match holds_password(text) {
        true => Err("holds a password: write the URL into a file of its own and name that as url_file, or put the \
                     password into the environment variable PGPASSWORD"
            .to_owned()),
        false => parse_url(folder, text),
    });
    let from_file = database.text("url_file", |text| {
        let path = parse_path(folder, text)?;
        let name = path.display().to_string();
        let text = read_text(&path).map_err(|error| format!("{name} cannot be read: {error}"))?;
        parse_url(folder, text.trim()).map_err(|error| format!("{name}: {error}"))
    });
    match (url, from_file) {
        (Some(_), Some(at)) => {
            database.mistake("url_file", at.place, "url is given already: say one of them");
            None
        }
        (url, from_file) => url.or(from_file).map(|at| at.value),
    }
}

/// What the environment says, by the name of its variable.
pub(super) fn parse_variable(text: &str) -> Result<Location, String> {
    parse_url(Path::new(""), text.trim()).map_err(|error| format!("GF_DATABASE_URL: {error}"))
}

/// A file is relative to the configuration, as all paths are.
fn parse_url(folder: &Path, text: &str) -> Result<Location, String> {
    match text.parse::<Location>().map_err(|error| error.to_string())? {
        Location::Sqlite(path) => Ok(Location::Sqlite(absolute(folder, path))),
        postgres @ Location::Postgres(_) => Ok(postgres),
    }
}

fn absolute(folder: &Path, path: PathBuf) -> PathBuf {
    if path.is_absolute() { path } else { folder.join(path) }
}

/// Whether a URL has a password in it, in either of the places where one can stand.
fn holds_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split('/').next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || query.split('&').any(|pair| pair.starts_with("password="))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment, Overrides};

    /// Where the facts are by this text, beside a file `secret` that holds a URL with a password.
    fn place(text: &str, variable: Option<&str>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "postgres://gf:s3cret@db.example/facts\n").unwrap();
        let environment = Environment {
            state_dir: Some("/state".into()),
            database_url: variable.map(str::to_owned),
            ..Environment::default()
        };
        let config = Config::parse(Some(&folder.path().join("gf.toml")), text, Overrides::default(), &environment);
        let shown = config.map(|config| config.database.to_string()).map_err(|errors| errors.to_string());
        shown.map(|shown| shown.replace(&folder.path().display().to_string(), "DIR"))
    }

    #[test]
    fn places() {
        let check = |text: &str, variable: Option<&str>, expected: &str| {
            assert_eq!(place(text, variable).as_deref(), Ok(expected), "{text} {variable:?}");
        };
        let postgres = "postgres://gf@db.example:5432/facts";
        check("", None, "sqlite:/state/facts.sqlite");
        check("data_dir = \"d\"", None, "sqlite:DIR/d/facts.sqlite");
        check("[database]\nurl = \"sqlite:x.sqlite\"", None, "sqlite:DIR/x.sqlite");
        check("[database]\nurl = \"sqlite:/srv/x.sqlite\"", None, "sqlite:/srv/x.sqlite");
        check("[database]\nurl = \"postgres://gf@db.example/facts\"", None, postgres);
        check("[database]\nurl_file = \"secret\"", None, postgres);
        check("", Some("postgres://gf:s3cret@db.example/facts"), postgres);
        check("[database]\nurl = \"sqlite:x\"", Some("postgres://gf:s3cret@db.example/facts"), postgres);
    }

    #[test]
    fn a_password_in_the_text_is_refused_and_not_repeated() {
        let check = |text: &str, variable: Option<&str>, expected: &str| {
            let error = place(text, variable).unwrap_err();
            assert!(error.contains(expected), "expected {expected:?} in\n{error}");
            assert!(!error.contains("s3cret"), "{error}");
        };
        check("[database]\nurl = \"postgres://gf:s3cret@db/facts\"", None, ":2: database.url: holds a password");
        check("[database]\nurl = \"postgres://gf@db/facts?password=s3cret\"", None, "holds a password");
        check("[database]\nurl = \"mysql://db/facts\"", None, "a database is");
        check("[database]\nurl_file = \"missing\"", None, "cannot be read");
        let both = "[database]\nurl = \"sqlite:x\"\nurl_file = \"secret\"";
        check(both, None, ":3: database.url_file: url is given already");
        check("", Some("postgres://gf:s3cret@db:99999/facts"), "GF_DATABASE_URL: ");
    }
}
