//! From lines to a [`NarInfo`]. Reading the lines and judging the fields are kept apart.

use std::collections::BTreeSet;

use super::{Compression, NarInfo, NarInfoError, NarUrl, SystemName};
use crate::content_address::ContentAddress;
use crate::hash::Hash;
use crate::signature::{Signature, Signatures};
use crate::store_path::{StoreDir, StorePath};

pub(super) fn parse(store: &StoreDir, bytes: &[u8]) -> Result<NarInfo, NarInfoError> {
    let fields = Fields::read(bytes)?;
    let nar_hash = required(fields.nar_hash, "NarHash")?;
    let nar_size = required(fields.nar_size, "NarSize")?;
    Ok(NarInfo {
        store_path: store
            .parse(required(fields.store_path, "StorePath")?)
            .map_err(|error| NarInfoError::StorePath("StorePath", error))?,
        url: NarUrl::new(required(fields.url, "URL")?)?,
        compression: compression(fields.compression)?,
        file_hash: fields.file_hash.map(|text| hash(text, "FileHash")).transpose()?,
        file_size: fields.file_size.map(|text| number(text, "FileSize")).transpose()?,
        nar_hash: hash(nar_hash, "NarHash")?.try_into().map_err(|error| NarInfoError::Hash("NarHash", error))?,
        nar_size: match number(nar_size, "NarSize")? {
            0 => return Err(NarInfoError::Number("NarSize")),
            size => size,
        },
        references: references(fields.references.unwrap_or_default())?,
        deriver: deriver(fields.deriver)?,
        system: fields.system.filter(|name| !name.is_empty()).map(SystemName::new).transpose()?,
        signatures: fields.signatures,
        content_address: fields
            .content_address
            .filter(|address| !address.is_empty())
            .map(ContentAddress::parse)
            .transpose()?,
    })
}

/// The values of all known fields, each seen at most once.
#[derive(Default)]
struct Fields<'a> {
    store_path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    system: Option<&'a str>,
    signatures: Signatures,
    content_address: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, NarInfoError> {
        if bytes.len() > NarInfo::MAX_BYTES {
            return Err(NarInfoError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| NarInfoError::NotUtf8)?;
        let lines = text.strip_suffix('\n').ok_or(NarInfoError::CutShort)?;
        let mut fields = Self::default();
        for (line, number) in lines.split('\n').zip(1..) {
            if line.chars().any(char::is_control) {
                return Err(NarInfoError::ControlCharacter(number));
            }
            let (key, value) = line.split_once(':').ok_or(NarInfoError::Line(number))?;
            fields.set(key, value.strip_prefix(' ').ok_or(NarInfoError::Line(number))?)?;
        }
        Ok(fields)
    }

    fn set(&mut self, key: &str, value: &'a str) -> Result<(), NarInfoError> {
        let (name, field) = match key {
            "StorePath" => ("StorePath", &mut self.store_path),
            "URL" => ("URL", &mut self.url),
            "Compression" => ("Compression", &mut self.compression),
            "FileHash" => ("FileHash", &mut self.file_hash),
            "FileSize" => ("FileSize", &mut self.file_size),
            "NarHash" => ("NarHash", &mut self.nar_hash),
            "NarSize" => ("NarSize", &mut self.nar_size),
            "References" => ("References", &mut self.references),
            "Deriver" => ("Deriver", &mut self.deriver),
            "System" => ("System", &mut self.system),
            "CA" => ("CA", &mut self.content_address),
            "Sig" => {
                self.signatures.insert(Signature::parse(value)?)?;
                return Ok(());
            }
            _ => return Ok(()),
        };
        match field.replace(value) {
            Some(_) => Err(NarInfoError::Duplicate(name)),
            None => Ok(()),
        }
    }
}

fn required<'a>(field: Option<&'a str>, name: &'static str) -> Result<&'a str, NarInfoError> {
    field.filter(|value| !value.is_empty()).ok_or(NarInfoError::Missing(name))
}

fn compression(field: Option<&str>) -> Result<Compression, NarInfoError> {
    match field {
        None | Some("") => Ok(Compression::Bzip2),
        Some(name) => Compression::from_name(name).ok_or(NarInfoError::Compression),
    }
}

fn hash(text: &str, name: &'static str) -> Result<Hash, NarInfoError> {
    Hash::parse(text).map_err(|error| NarInfoError::Hash(name, error))
}

fn number(text: &str, name: &'static str) -> Result<u64, NarInfoError> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| canonical).ok_or(NarInfoError::Number(name))
}

fn references(text: &str) -> Result<BTreeSet<StorePath>, NarInfoError> {
    let read = |name| StorePath::parse(name).map_err(|error| NarInfoError::StorePath("References", error));
    text.split(' ').filter(|name| !name.is_empty()).map(read).collect()
}

fn deriver(field: Option<&str>) -> Result<Option<StorePath>, NarInfoError> {
    match field {
        None | Some("unknown-deriver") => Ok(None),
        Some("") => Err(NarInfoError::Empty("Deriver")),
        Some(name) => match StorePath::parse(name) {
            Ok(path) => Ok(Some(path)),
            Err(error) => Err(NarInfoError::StorePath("Deriver", error)),
        },
    }
}
