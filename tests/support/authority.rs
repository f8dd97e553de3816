//! Certificates for tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    date_time_ymd,
};

/// A certificate authority that writes PEM files into a folder.
pub struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// One whose certificate goes to this file.
    pub fn new(folder: &Path, file: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two of the same name would be taken for one.
        params.distinguished_name.push(DnType::CommonName, file);
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.join(file), pem).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            folder: folder.to_owned(),
        }
    }

    /// A certificate for this name, of a server and of a client, and its key, as NAME.pem and NAME.key.
    pub fn issue(&self, name: &str, host: &str) {
        self.issue_with(name, host, |_| {});
    }

    /// The same with a change to it.
    pub fn issue_with(&self, name: &str, host: &str, change: impl FnOnce(&mut CertificateParams)) {
        self.issue_for(name, &[host], change);
    }

    /// The same for several names.
    pub fn issue_for(
        &self,
        name: &str,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let key = rcgen::KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(self.folder.join(format!("{name}.pem")), pem).unwrap();
        let key_file = self.folder.join(format!("{name}.key"));
        std::fs::write(key_file, key.serialize_pem()).unwrap();
    }
}

/// Makes a certificate one of the past.
pub fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
}
