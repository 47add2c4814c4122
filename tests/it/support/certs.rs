//! Certificates of the tests: an authority, and what it signed.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// An authority and one certificate of a server or client on loopback, as PEM files in a folder.
pub struct Certs {
    folder: PathBuf,
}

impl Certs {
    /// Makes them; `name` is the certificate's common name.
    pub fn make(folder: &Path, name: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "the tests' authority");
        let authority_key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::from_params(&authority, &authority_key);
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut leaf = CertificateParams::new(hosts).unwrap();
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let cert = leaf.signed_by(&key, &issuer).unwrap();
        let certs = Self {
            folder: folder.to_owned(),
        };
        let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).unwrap();
        write("ca.pem", &root.pem());
        write("cert.pem", &cert.pem());
        write("key.pem", &key.serialize_pem());
        write(
            "both.pem",
            &format!("{}{}", key.serialize_pem(), cert.pem()),
        );
        certs
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    pub fn cert(&self) -> String {
        self.path("cert.pem")
    }

    pub fn key(&self) -> String {
        self.path("key.pem")
    }

    /// Key and certificate in one file, as Kafka's key stores are.
    pub fn both(&self) -> String {
        self.path("both.pem")
    }
}
