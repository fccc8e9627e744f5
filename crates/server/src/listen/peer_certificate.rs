//! The certificate that a client presented when it connected, and what it stands for while it is connected.
//!
//! What always holds: the chain was verified before a name is read. A request that brings a credential of its own is
//! judged by that alone.

use std::sync::Arc;

use gf_tenancy::{Access, CertificateNames, Loan};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What a connection's certificate is worth, among the extensions of its requests. It ends with them.
#[derive(Clone, Debug)]
pub struct PeerCertificate(Arc<Loan>);

impl PeerCertificate {
    /// Takes the certificate of a connection.
    pub(super) fn of(access: &Access, certificate: &CertificateDer<'_>) -> Option<Self> {
        let lent = access.lend_certificate(&names(certificate));
        let failed = |error: &gf_tenancy::NoRandomness| tracing::error!(%error, "a certificate is taken for none");
        lent.inspect_err(failed).ok().map(|loan| Self(Arc::new(loan)))
    }

    /// The credential that it stands for.
    pub(crate) fn credential(&self) -> &str {
        self.0.credential().expose()
    }
}

/// The names that rules can be about. What cannot be read is no name.
fn names(certificate: &CertificateDer<'_>) -> CertificateNames {
    let mut names = CertificateNames::default();
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return names };
    let common_names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.common_names = common_names.map(str::to_owned).collect();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(host) => names.hosts.push((*host).to_owned()),
                _ => {}
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_of_every_kind() {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Ann");
        params.subject_alt_names.push(SanType::URI("spiffe://acme.example/ci".try_into().unwrap()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let found = names(certificate.der());
        assert_eq!(found.uris, ["spiffe://acme.example/ci"]);
        assert_eq!(found.hosts, ["a.example"]);
        assert_eq!(found.common_names, ["Ann"]);
        assert_eq!(names(&CertificateDer::from(b"no certificate".as_slice())), CertificateNames::default());
    }
}
