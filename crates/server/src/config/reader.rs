//! Walks a TOML document and keeps every mistake with its line, instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as it was named; `None` for flags, environment and defaults.
    pub file: Option<String>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: {}", self.message),
            (Some(file), None) => write!(f, "{file}: {}", self.message),
            (None, _) => f.write_str(&self.message),
        }
    }
}

/// Every mistake in a configuration, in the order of lines.
#[derive(Clone, Debug, Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// A value with the place that it came from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Range<usize>,
}

/// The document, and the mistakes found in it so far.
pub(super) struct Document<'t> {
    file: String,
    text: &'t str,
    mistakes: RefCell<Vec<(usize, ConfigError)>>,
}

impl<'t> Document<'t> {
    pub(super) fn new(file: String, text: &'t str) -> Self {
        Self { file, text, mistakes: RefCell::default() }
    }

    /// The root table. What could be parsed is returned even when there are mistakes.
    pub(super) fn root(&self) -> Section<'_, 't> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.mistake(error.span().unwrap_or_default(), error.message().to_owned());
        }
        Section::new(self, String::new(), table.into_inner())
    }

    pub(super) fn mistake(&self, place: Range<usize>, message: String) {
        let before = self.text.get(..place.start).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let error = ConfigError { file: Some(self.file.clone()), line: Some(line), message };
        self.mistakes.borrow_mut().push((place.start, error));
    }

    /// The mistakes, in the order of the text: one for each value, since a broken one has consequences too.
    pub(super) fn into_mistakes(self) -> Vec<ConfigError> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|(offset, _)| *offset);
        mistakes.dedup_by_key(|(offset, _)| *offset);
        mistakes.into_iter().map(|(_, error)| error).collect()
    }
}

/// A table being read. Keys are taken one by one; [`Section::finish`] reports those that nobody took.
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    path: String,
    table: DeTable<'t>,
    known: Vec<&'static str>,
    /// Of the known keys, those that the table has, whether or not their values are right.
    given: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    fn new(document: &'d Document<'t>, path: String, table: DeTable<'t>) -> Self {
        Self { document, path, table, known: Vec::new(), given: Vec::new() }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn remove(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        self.given.push(key);
        Some(value)
    }

    /// Whether the table has the key, which was taken before.
    pub(super) fn was_given(&self, key: &str) -> bool {
        self.given.contains(&key)
    }

    /// Takes text and parses it.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let value = self.remove(key)?;
        let place = value.span();
        let parsed = match value.get_ref() {
            DeValue::String(text) => parse(text),
            other => Err(format!("expected text in quotes, found {}", describe(other))),
        };
        self.keep(key, place, parsed)
    }

    /// Takes a whole number and checks it.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        check: impl FnOnce(u64) -> Result<T, String>,
    ) -> Option<At<T>> {
        let value = self.remove(key)?;
        let place = value.span();
        let parsed = match value.get_ref() {
            DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => check(number),
                Err(_) => Err(format!("{number} is not a whole number from 0")),
            },
            other => Err(format!("expected a whole number, found {}", describe(other))),
        };
        self.keep(key, place, parsed)
    }

    /// Takes `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.placed_flag(key).map(|at| at.value)
    }

    /// As [`Self::flag`], with its place.
    pub(super) fn placed_flag(&mut self, key: &'static str) -> Option<At<bool>> {
        let value = self.remove(key)?;
        let place = value.span();
        let parsed = match value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            other => Err(format!("expected true or false, found {}", describe(other))),
        };
        self.keep(key, place, parsed)
    }

    /// Takes a list of texts and parses each; comes back only when all are right.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<Vec<At<T>>>> {
        let value = self.remove(key)?;
        let place = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            let problem = Err("expected a list of texts, such as [\"a\", \"b\"]".to_owned());
            return self.keep(key, place, problem);
        };
        let mut parsed = Vec::new();
        let all = items.len();
        for item in items {
            let place = item.span();
            let result = match item.get_ref() {
                DeValue::String(text) => parse(text),
                other => Err(format!("expected text in quotes, found {}", describe(other))),
            };
            parsed.extend(self.keep(key, place, result));
        }
        (parsed.len() == all).then_some(At { value: parsed, place })
    }

    /// Takes a table of short texts whose keys are not known beforehand, and parses each. Numbers and `true` or `false`
    /// are taken as they read. Comes back only when all are right.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str, &str) -> Result<T, String>,
    ) -> Option<At<Vec<T>>> {
        let value = self.remove(key)?;
        let place = value.span();
        let table = self.as_table(key, value)?;
        let mut parsed = Vec::new();
        let all = table.len();
        for (name, item) in table {
            let place = item.span();
            let result = match item.get_ref() {
                DeValue::String(text) => parse(name.get_ref(), text),
                DeValue::Integer(number) => parse(name.get_ref(), number.as_str()),
                DeValue::Boolean(flag) => parse(name.get_ref(), &flag.to_string()),
                other => Err(format!("{}: expected text in quotes, found {}", name.get_ref(), describe(other))),
            };
            parsed.extend(self.keep(key, place, result).map(|at| at.value));
        }
        (parsed.len() == all).then_some(At { value: parsed, place })
    }

    /// Reads a table below this one; without it, an empty one.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> T {
        let table = match self.remove(key) {
            None => DeTable::new(),
            Some(value) => self.as_table(key, value).unwrap_or_default(),
        };
        let mut section = Section::new(self.document, self.name(key), table);
        let read = read(&mut section);
        section.finish();
        read
    }

    /// Reads each table of `[[key]]`.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Section<'d, 't>, Range<usize>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.remove(key) else { return Vec::new() };
        let place = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.document.mistake(place, format!("{key}: write it as [[{key}]], once for each"));
            return Vec::new();
        };
        let mut all = Vec::new();
        for item in items {
            let place = item.span();
            let Some(table) = self.as_table(key, item) else { continue };
            let mut section = Section::new(self.document, self.name(key), table);
            all.extend(read(&mut section, place));
            section.finish();
        }
        all
    }

    /// Reports a mistake in this table.
    pub(super) fn mistake(&self, key: &str, place: Range<usize>, message: &str) {
        self.document.mistake(place, format!("{}: {message}", self.name(key)));
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let name = self.name(key.get_ref());
            let known = self.known.join(", ");
            self.document.mistake(key.span(), format!("{name}: there is no such key; known here: {known}"));
        }
    }

    fn as_table(&self, key: &str, value: Spanned<DeValue<'t>>) -> Option<DeTable<'t>> {
        let place = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            other => {
                let found = describe(&other);
                self.document.mistake(place, format!("{}: expected a table, found {found}", self.name(key)));
                None
            }
        }
    }

    fn keep<T>(&self, key: &str, place: Range<usize>, parsed: Result<T, String>) -> Option<At<T>> {
        match parsed {
            Ok(value) => Some(At { value, place }),
            Err(message) => {
                self.mistake(key, place, &message);
                None
            }
        }
    }
}

/// The kind of a value; never the value itself, which may be a misplaced secret.
const fn describe(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
