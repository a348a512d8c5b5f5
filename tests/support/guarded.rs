//! A server with access control.

use std::os::unix::fs::PermissionsExt;

use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use tempfile::TempDir;

use super::{PATIENCE, certificates::Certificates, eventually, mongod::Mongod};

/// The password of every user here, for tests that look for it where it must not be.
pub const PASSWORD: &str = "s3cret";

/// A replica set of one in which nobody may do anything but `root`, and `outrigger` with its roles.
pub struct Guarded {
    pub server: Mongod,
    pub root: Client,
    key: TempDir,
}

impl Guarded {
    pub async fn start(roles: Vec<Bson>) -> Self {
        Self::start_with(roles, &[], "").await
    }

    /// As [`start`](Self::start), and nobody may come without TLS.
    pub async fn start_tls(roles: Vec<Bson>, certificates: &Certificates) -> Self {
        Self::start_with(roles, &certificates.server_args(), &certificates.options()).await
    }

    async fn start_with(roles: Vec<Bson>, args: &[String], options: &str) -> Self {
        let key = TempDir::new().unwrap();
        let server = member(&key, args, options).await;
        server.initiate().await;
        // The first user may be made from this machine without being one.
        server.admin(user("root", vec!["root".into()])).await;
        let root = Client::with_uri_str(uri(&server, "root", PASSWORD)).await.unwrap();
        root.database("admin").run_command(user("outrigger", roles)).await.unwrap();
        Self { server, root, key }
    }

    /// Starts another server that follows this one, and never becomes the primary.
    pub async fn join(&self) -> Mongod {
        let second = member(&self.key, &[], "").await;
        let admin = self.root.database("admin");
        let found = admin.run_command(doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = found.get_document("config").unwrap().clone();
        config.insert("version", config.get_i32("version").unwrap() + 1);
        let host = format!("127.0.0.1:{}", second.port);
        let added = doc! { "_id": 1, "host": host, "votes": 0, "priority": 0 };
        config.get_array_mut("members").unwrap().push(added.into());
        admin.run_command(doc! { "replSetReconfig": config }).await.unwrap();
        eventually("a secondary", PATIENCE, async || {
            let hello = second.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("secondary").unwrap_or(false))
        })
        .await;
        second
    }

    /// The connection string of `outrigger` to another member.
    pub fn uri_of(member: &Mongod) -> String {
        uri(member, "outrigger", PASSWORD)
    }

    /// The connection string of `outrigger`.
    pub fn uri(&self) -> String {
        uri(&self.server, "outrigger", PASSWORD)
    }

    /// Runs a command on `admin` as `root`.
    pub async fn admin(&self, command: Document) {
        self.root.database("admin").run_command(command).await.unwrap();
    }
}

async fn member(key: &TempDir, args: &[String], options: &str) -> Mongod {
    let key_file = key.path().join("key");
    std::fs::write(&key_file, "c2VjcmV0IG9mIHRoZSByZXBsaWNhIHNldA==").unwrap();
    std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).unwrap();
    let args_of_set = ["--replSet", "rs", "--auth", "--keyFile", key_file.to_str().unwrap()];
    let args: Vec<&str> = args_of_set.into_iter().chain(args.iter().map(String::as_str)).collect();
    Mongod::start_with_options(&args, options).await
}

fn user(name: &str, roles: Vec<Bson>) -> Document {
    doc! { "createUser": name, "pwd": PASSWORD, "roles": roles }
}

fn uri(server: &Mongod, name: &str, password: &str) -> String {
    let (port, options) = (server.port, &server.options);
    format!("mongodb://{name}:{password}@127.0.0.1:{port}/?directConnection=true{options}")
}
