//! A replica set of three, whose primary can be made to change.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};

use super::{
    certificates::Certificates,
    eventually,
    guarded::{self, Guard},
    mongod::Mongod,
};

/// What a set is of.
#[derive(Default)]
struct Kind {
    guard: Option<Guard>,
    version: Option<&'static str>,
    has_arbiter: bool,
}

/// Three members. An election takes about two seconds.
pub struct ReplicaSet {
    /// No other set has it: to a driver, and to servers, a set is what goes by its name.
    name: String,
    pub members: Vec<Mongod>,
    /// Follows the primary, and may do everything.
    pub client: Client,
    guard: Option<Guard>,
}

impl ReplicaSet {
    pub async fn start() -> Self {
        Self::start_with(Kind::default(), vec![]).await
    }

    /// Whose third member holds nothing and only votes: while one of the others is away, nothing is a majority's.
    pub async fn start_with_arbiter() -> Self {
        Self::start_with(Kind { has_arbiter: true, ..Kind::default() }, vec![]).await
    }

    /// Whose members are of one version.
    pub async fn start_of(version: &'static str) -> Self {
        Self::start_with(Kind { version: Some(version), ..Kind::default() }, vec![]).await
    }

    /// With access control, for a user `outrigger` with these roles, and nobody may come without TLS.
    pub async fn start_tls(roles: Vec<Bson>, certificates: &Certificates) -> Self {
        let guard = Some(Guard::with_tls(certificates));
        Self::start_with(Kind { guard, ..Kind::default() }, roles).await
    }

    async fn start_with(kind: Kind, roles: Vec<Bson>) -> Self {
        static SETS: AtomicU32 = AtomicU32::new(0);
        let name = format!("rs{}", SETS.fetch_add(1, Ordering::Relaxed));
        let Kind { guard, version, has_arbiter } = kind;
        let members = join_all((0..3).map(|_| async {
            match version {
                None => member(&name, guard.as_ref()).await,
                Some(version) => Mongod::start_of_set(version, &name).await,
            }
        }))
        .await;
        let list: Vec<Document> = (0..)
            .zip(&members)
            .map(|(id, member)| {
                let host = format!("127.0.0.1:{}", member.port);
                // The last, so that the first two are the ones with data.
                let is_arbiter = has_arbiter && id == 2;
                doc! { "_id": id, "host": host, "arbiterOnly": is_arbiter, "priority": i32::from(!is_arbiter) }
            })
            .collect();
        let settings = doc! { "electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 500 };
        let config = doc! { "_id": &name, "members": list, "settings": settings };
        members[0].admin(doc! { "replSetInitiate": config }).await;
        let anybody = uri(&name, &members, "", "");
        let client = Client::with_uri_str(anybody).await.unwrap();
        let mut set = Self { name, members, client, guard };
        let primary = set.primary().await;
        if let Some(guard) = &set.guard {
            guard.let_in(&set.members[primary], roles).await;
            set.client = Client::with_uri_str(set.uri_of("root")).await.unwrap();
        }
        let states = if has_arbiter { [1, 1] } else { [2, 0] };
        eventually("all members", Duration::from_secs(60), async || {
            let admin = set.client.database("admin");
            admin.run_command(doc! { "replSetGetStatus": 1 }).await.is_ok_and(|status| {
                let members = status.get_array("members").unwrap().iter();
                let told: Vec<_> = members
                    .map(|member| member.as_document().unwrap().get_str("stateStr").unwrap())
                    .collect();
                let of = |state: &str| told.iter().filter(|told| **told == state).count();
                [of("SECONDARY"), of("ARBITER")] == states
            })
        })
        .await;
        set
    }

    /// The place of the primary among the members.
    pub async fn primary(&self) -> usize {
        let mut found = None;
        eventually("a primary", Duration::from_secs(60), async || {
            for (n, member) in self.members.iter().enumerate() {
                let admin = member.client.database("admin");
                let hello = admin.run_command(doc! { "hello": 1 });
                let hello = tokio::time::timeout(Duration::from_secs(2), hello).await;
                if let Ok(Ok(hello)) = hello
                    && hello.get_bool("isWritablePrimary").unwrap_or(false)
                {
                    found = Some(n);
                }
            }
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Has the members go on as another version one by one, the primary last, as it is done where nobody may notice.
    /// `between` is what goes on while they are not of one version.
    pub async fn turn_into(&mut self, version: &str, mut between: impl AsyncFnMut(&Client)) {
        let last = self.primary().await;
        for n in (0..3).filter(|n| *n != last) {
            self.turn_one_into(n, version).await;
            between(&self.client).await;
        }
        self.step_down().await;
        eventually("the other primary", Duration::from_secs(60), async || {
            let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
        })
        .await;
        between(&self.client).await;
        self.turn_one_into(last, version).await;
    }

    async fn turn_one_into(&mut self, n: usize, version: &str) {
        self.members[n].turn_into(version).await;
        self.follows(&self.members[n]).await;
    }

    async fn follows(&self, member: &Mongod) {
        eventually("a secondary", Duration::from_secs(60), async || {
            let hello = member.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("secondary").unwrap_or(false))
        })
        .await;
    }

    /// Has another member elected, in order.
    pub async fn step_down(&self) {
        let primary = self.primary().await;
        let command =
            doc! { "replSetStepDown": 30, "secondaryCatchUpPeriodSecs": 10, "force": true };
        // The server may close the connection instead of an answer.
        let _ = self.client.database("admin").run_command(command).await;
        let others: Vec<usize> = (0..3).filter(|n| *n != primary).collect();
        eventually("another primary", Duration::from_secs(60), async || {
            others.contains(&self.primary().await)
        })
        .await;
    }

    /// Another member joins, and the one at this place leaves for good.
    pub async fn replace(&mut self, n: usize) {
        while self.primary().await == n {
            self.step_down().await;
        }
        let next = member(&self.name, self.guard.as_ref()).await;
        let host = |member: &Mongod| format!("127.0.0.1:{}", member.port);
        let (new, old) = (host(&next), host(&self.members[n]));
        self.configure(|members| {
            let ids = members.iter().map(|member| member.get_i32("_id").unwrap());
            let id = ids.max().unwrap() + 1;
            members.push(doc! { "_id": id, "host": &new });
        })
        .await;
        self.follows(&next).await;
        self.configure(|members| members.retain(|member| member.get_str("host").unwrap() != old))
            .await;
        self.members[n] = next;
    }

    /// Changes the list of the members. One voter at a time may come or go.
    async fn configure(&self, change: impl Fn(&mut Vec<Document>)) {
        eventually("another configuration", Duration::from_secs(60), async || {
            let primary = self.primary().await;
            let admin = self.members[primary].client.database("admin");
            let Ok(told) = admin.run_command(doc! { "replSetGetConfig": 1 }).await else {
                return false;
            };
            let mut config = told.get_document("config").unwrap().clone();
            let members = config.get_array("members").unwrap().iter();
            let mut members: Vec<_> =
                members.map(|member| member.as_document().unwrap().clone()).collect();
            change(&mut members);
            config.insert("members", members);
            config.insert("version", config.get_i32("version").unwrap() + 1);
            admin.run_command(doc! { "replSetReconfig": config }).await.is_ok()
        })
        .await;
    }

    /// `kill -9` of the primary; returns its place.
    pub async fn kill_primary(&mut self) -> usize {
        let primary = self.primary().await;
        self.members[primary].kill();
        primary
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connection string of `outrigger`, where there is access control.
    pub fn uri(&self) -> String {
        self.uri_of("outrigger")
    }

    fn uri_of(&self, user: &str) -> String {
        match &self.guard {
            None => uri(&self.name, &self.members, "", ""),
            Some(guard) => {
                let who = format!("{user}:{}@", guarded::PASSWORD);
                uri(&self.name, &self.members, &who, guard.options())
            }
        }
    }
}

async fn member(set: &str, guard: Option<&Guard>) -> Mongod {
    match guard {
        None => Mongod::start_with(&["--replSet", set]).await,
        Some(guard) => guard.member(set).await,
    }
}

fn uri(name: &str, members: &[Mongod], who: &str, options: &str) -> String {
    let hosts: Vec<_> = members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
    format!("mongodb://{who}{}/?replicaSet={name}{options}", hosts.join(","))
}
