//! Client certificates: which of a node's pairs is shown to a registry, chosen as Go's `crypto/tls` does.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};

/// The tag of a `SEQUENCE` (ITU-T X.690, 8.9).
const SEQUENCE: u8 = 0x30;
/// The tag of the version of an X.509 certificate, which the first version leaves out (RFC 5280, 4.1).
const VERSION: u8 = 0xa0;

/// The pairs for one endpoint, in the order of its `hosts.toml`.
#[derive(Debug, Default)]
pub(super) struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ClientCertificates {
    /// Adds a chain with the key of its first certificate.
    pub(super) fn add(
        &mut self,
        (chain, private): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        provider: &CryptoProvider,
    ) -> Result<(), rustls::Error> {
        let private = provider.key_provider.load_private_key(private)?;
        let pair = CertifiedKey::new(chain, private);
        // A certificate that rustls cannot read, such as one of X.509's first version, may well be one that the registry
        // can; only what certainly does not belong together is refused.
        let matched = pair.keys_match();
        if let Err(error @ rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = matched
        {
            return Err(error);
        }
        self.0.push(Arc::new(pair));
        Ok(())
    }
}

impl ResolvesClientCert for ClientCertificates {
    fn resolve(
        &self,
        accepted_issuers: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let is_accepted = |pair: &&Arc<CertifiedKey>| {
            let mut issuers = pair
                .cert
                .iter()
                .filter_map(|certificate| issuer(certificate));
            pair.key.choose_scheme(schemes).is_some()
                && (accepted_issuers.is_empty()
                    || issuers.any(|issuer| accepted_issuers.contains(&issuer)))
        };
        self.0.iter().find(is_accepted).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The issuer of a certificate, as it is encoded (RFC 5280, 4.1).
fn issuer(certificate: &[u8]) -> Option<&[u8]> {
    let certificate = element(certificate)?;
    let to_be_signed = element(certificate.contents)?;
    let mut next = element(to_be_signed.contents)?;
    if next.tag == VERSION {
        next = element(next.rest)?;
    }
    let algorithm = element(next.rest)?;
    let issuer = element(algorithm.rest)?;
    (issuer.tag == SEQUENCE).then_some(issuer.whole)
}

/// An element of DER, and what follows it.
struct Element<'a> {
    tag: u8,
    whole: &'a [u8],
    contents: &'a [u8],
    rest: &'a [u8],
}

/// The first element; `None` when there is none.
fn element(der: &[u8]) -> Option<Element<'_>> {
    let (&tag, after_tag) = der.split_first()?;
    let (&first, after_length) = after_tag.split_first()?;
    let (length, after_length) = match first {
        0..=0x7f => (usize::from(first), after_length),
        // Four bytes are more than any certificate is long.
        0x81..=0x84 => {
            let (bytes, rest) = after_length.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (contents, rest) = after_length.split_at_checked(length)?;
    Some(Element {
        tag,
        whole: &der[..der.len() - rest.len()],
        contents,
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_found_with_a_version_and_without() {
        let issuer_of = |version: &[u8]| {
            let name = [SEQUENCE, 2, 0x31, 0];
            let fields = [version, &[2, 1, 9], &[SEQUENCE, 0], &name, &[SEQUENCE, 0]].concat();
            let length = u8::try_from(fields.len()).unwrap();
            let to_be_signed = [&[SEQUENCE, 0x81, length], &fields[..]].concat();
            let length = u8::try_from(to_be_signed.len()).unwrap();
            let certificate = [&[SEQUENCE, 0x82, 0, length], &to_be_signed[..]].concat();
            issuer(&certificate).map(<[u8]>::to_vec)
        };
        for version in [&[][..], &[VERSION, 3, 2, 1, 2]] {
            assert_eq!(issuer_of(version), Some(vec![SEQUENCE, 2, 0x31, 0]));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(0_u8.., 0..60)) {
            issuer(&bytes);
        }
    }
}
