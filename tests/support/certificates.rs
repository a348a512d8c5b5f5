//! An authority of our own, with a server and a client that it vouches for.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// PEM files in a folder that goes away.
pub struct Certificates {
    dir: TempDir,
}

/// The client's name, as MongoDB writes it.
pub const CLIENT: &str = "CN=outrigger,OU=agents,O=shop";

impl Certificates {
    pub fn new() -> Self {
        Self::of("authority", "outrigger")
    }

    /// Of an authority of this name, for a client of this name.
    pub fn of(authority: &str, client_name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, authority);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();

        // The last as a name service tells it (tests/support/name_service.rs).
        let names = ["127.0.0.1", "localhost", "server.outrigger.test"].map(str::to_owned).to_vec();
        let mut server = CertificateParams::new(names).unwrap();
        server.distinguished_name.push(DnType::CommonName, "atlas");
        server.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let mut client = CertificateParams::new(vec![]).unwrap();
        // In this order, and without the name that is there by default.
        client.distinguished_name = DistinguishedName::new();
        client.distinguished_name.push(DnType::OrganizationName, "shop");
        client.distinguished_name.push(DnType::OrganizationalUnitName, "agents");
        client.distinguished_name.push(DnType::CommonName, client_name);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let elsewhere = CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap();
        for (name, params) in
            [("server.pem", server), ("client.pem", client), ("elsewhere.pem", elsewhere)]
        {
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            std::fs::write(dir.path().join(name), certificate.pem() + &key.serialize_pem())
                .unwrap();
        }
        Self { dir }
    }

    /// `ca.pem`, `server.pem`, `client.pem`, and `elsewhere.pem` for a name that is no machine's here.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a server is started with: nobody may come without TLS.
    pub fn server_args(&self) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        vec![
            "--tlsMode".into(),
            "requireTLS".into(),
            "--tlsCertificateKeyFile".into(),
            path("server.pem"),
            "--tlsCAFile".into(),
            path("ca.pem"),
            "--tlsAllowConnectionsWithoutCertificates".into(),
        ]
    }

    /// The options of a connection string that trusts the authority.
    pub fn options(&self) -> String {
        format!("&tls=true&tlsCAFile={}", encoded(&self.file("ca.pem")))
    }

    /// And shows the client's certificate in place of a password.
    pub fn x509_options(&self) -> String {
        let client = encoded(&self.file("client.pem"));
        format!("{}&tlsCertificateKeyFile={client}&authMechanism=MONGODB-X509", self.options())
    }
}

fn encoded(path: &Path) -> String {
    path.display().to_string().replace('/', "%2F")
}
