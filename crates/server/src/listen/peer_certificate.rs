//! The certificate that a client presented when it connected, and what it stands for while it is connected.
//!
//! What always holds: the chain was verified before a name is read, and the certificate counts until it ends, however
//! long the connection lasts. A request that brings a credential of its own is judged by that alone.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gf_tenancy::{Access, CertificateNames, Loan};
use rustls::pki_types::CertificateDer;
use tokio::time::sleep;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// How often the clock is looked at: it may be set while a certificate lasts.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a connection's certificate is worth, among the extensions of its requests. It ends with them.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    loan: Arc<Loan>,
    ends: SystemTime,
}

impl PeerCertificate {
    /// Takes the certificate of a connection.
    pub(super) fn of(access: &Access, certificate: &CertificateDer<'_>) -> Option<Self> {
        let (names, ends_s) = read(certificate);
        let lent = access.lend_certificate(&names, ends_s);
        let failed = |error: &gf_tenancy::NoRandomness| tracing::error!(%error, "a certificate is taken for none");
        lent.inspect_err(failed)
            .ok()
            .map(|loan| Self { loan: Arc::new(loan), ends: UNIX_EPOCH + Duration::from_secs(ends_s) })
    }

    /// The credential that it stands for.
    pub(crate) fn credential(&self) -> &str {
        self.loan.credential().expose()
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        while let Ok(left) = self.ends.duration_since(SystemTime::now()) {
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK_EVERY)).await;
        }
    }
}

/// The names that rules can be about, and when it ends, in seconds since 1970. What cannot be read is no name, and has
/// ended.
fn read(certificate: &CertificateDer<'_>) -> (CertificateNames, u64) {
    let mut names = CertificateNames::default();
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return (names, 0) };
    // It is good in the second that it names, too.
    let ends_s = u64::try_from(certificate.validity().not_after.timestamp()).map_or(0, |last| last + 1);
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
    (names, ends_s)
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
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (found, ends_s) = read(certificate.der());
        assert_eq!(ends_s, 1_893_456_001);
        assert_eq!(found.uris, ["spiffe://acme.example/ci"]);
        assert_eq!(found.hosts, ["a.example"]);
        assert_eq!(found.common_names, ["Ann"]);
        assert_eq!(read(&CertificateDer::from(b"no certificate".as_slice())), (CertificateNames::default(), 0));
    }
}
