//! `[tls]`: certificate and key of the server, and which certificates of clients are taken.

use std::path::Path;

use super::readable;
use super::reader::Section;
use super::trust::{self, ReadCertificateRule};
use crate::listen::{ClientCertificates, Presence, TlsConfig};

/// What `[tls]` says.
#[derive(Default)]
pub(super) struct TlsSection {
    pub(super) server: Option<TlsConfig>,
    pub(super) rules: Vec<ReadCertificateRule>,
}

pub(super) fn read(tls: &mut Section<'_, '_>, folder: &Path) -> TlsSection {
    let (cert, key) = (tls.text("cert", |text| readable(folder, text)), tls.text("key", |text| readable(folder, text)));
    let clients = read_clients(tls, folder);
    let rules = tls.sections("client", trust::read_certificate_rule);
    if let (false, Some(rule)) = (tls.was_given("client_ca_file"), rules.first()) {
        tls.mistake("client_ca_file", rule.place(), "is missing: it says whose certificates the rules are about");
    }
    let server = match (cert, key) {
        (Some(cert), Some(key)) => {
            let config = TlsConfig { cert: cert.value, key: key.value, clients };
            if let Err(error) = config.load() {
                tls.mistake("cert", cert.place, &error.to_string());
            }
            Some(config)
        }
        (Some(at), None) if !tls.was_given("key") => {
            tls.mistake("key", at.place, "is missing: TLS needs cert and key");
            None
        }
        (None, Some(at)) if !tls.was_given("cert") => {
            tls.mistake("cert", at.place, "is missing: TLS needs cert and key");
            None
        }
        _ => None,
    };
    TlsSection { server, rules }
}

fn read_clients(tls: &mut Section<'_, '_>, folder: &Path) -> Option<ClientCertificates> {
    let authorities = tls.text("client_ca_file", |text| readable(folder, text));
    let revoked = tls.text("client_crl_file", |text| readable(folder, text));
    let presence = tls.text("client_certificates", |text| match text {
        "optional" => Ok(Presence::Optional),
        "required" => Ok(Presence::Required),
        other => Err(format!("{other:?} is neither \"optional\" nor \"required\"")),
    });
    let given = |key| tls.was_given(key);
    let is_alone = !given("client_ca_file") && (given("client_crl_file") || given("client_certificates"));
    let place = revoked.as_ref().map(|at| &at.place).or(presence.as_ref().map(|at| &at.place));
    if let (true, Some(place)) = (is_alone, place) {
        let message = "is missing: name the authorities that sign the certificates of clients";
        tls.mistake("client_ca_file", place.clone(), message);
    }
    if let (Some(at), false) = (&authorities, given("cert") || given("key")) {
        tls.mistake("cert", at.place.clone(), "is missing: certificates of clients need TLS, so cert and key");
    }
    Some(ClientCertificates {
        authorities: authorities?.value,
        revoked: revoked.map(|at| at.value),
        presence: presence.map_or(Presence::Optional, |at| at.value),
    })
}
