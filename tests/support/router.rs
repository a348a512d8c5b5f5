//! A server that says of itself what a sharded cluster's router (mongos) says: no build of one is at hand.

use std::sync::{Arc, Mutex};

use bson::{RawDocument, RawDocumentBuf};
use mongodb::bson;
use outrigger::model::raw::{self, Builder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// What a member of a replica set says of its set, and a router does not; and how answers may be compressed, for
/// here they are to be read.
const OF_A_SET: &[&[u8]] = &[
    b"setName",
    b"setVersion",
    b"hosts",
    b"primary",
    b"me",
    b"secondary",
    b"electionId",
    b"lastWrite",
    b"compression",
];

/// `OP_MSG`, in the header of a message.
const OP_MSG: i32 = 2013;

/// Passes connections on to a member of a replica set, and has its answers look as those of a router.
pub struct Router {
    port: u16,
    target: u16,
    held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
}

/// A command that is on its way to the server behind, while who has sent it has an answer.
#[derive(Default)]
struct Held {
    /// What the next one to be held has in it, and how it is answered.
    next: Option<(Vec<u8>, RawDocumentBuf)>,
    message: Option<Vec<u8>>,
}

impl Router {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        super::ends::leads(port, target);
        let held = Arc::new(Mutex::new(Held::default()));
        let of_all = held.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                let client_write = Arc::new(tokio::sync::Mutex::new(client_write));
                let ask = ask(client_read, server_write, client_write.clone(), of_all.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = ask => {}
                        _ = answer(server_read, client_write) => {}
                    }
                });
            }
        });
        Self { port, target, held, task }
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/", self.port)
    }

    /// The next command of this name, of this collection, is answered with `reply`, and does not reach the server behind it
    /// before [`let_go`](Self::let_go).
    pub fn hold(&self, command: &str, collection: &str, reply: &bson::Document) {
        let reply = RawDocumentBuf::try_from(reply).unwrap();
        let mut of_command = Builder::default();
        of_command.push_str(command, collection);
        let of_command = of_command.finish();
        // The field by itself: what begins a document is its length, and what ends it a zero.
        let field = of_command.as_bytes();
        let field = field[4..field.len() - 1].to_vec();
        self.held.lock().unwrap().next = Some((field, reply));
    }

    pub fn has_held(&self) -> bool {
        self.held.lock().unwrap().message.is_some()
    }

    /// The server behind does what was held.
    pub async fn let_go(&self) {
        let message = self.held.lock().unwrap().message.take().expect("something is held");
        let mut server = TcpStream::connect(("127.0.0.1", self.target)).await.unwrap();
        server.write_all(&message).await.unwrap();
        let (_, reply) = message_of(&mut server).await.unwrap();
        let reply = RawDocument::from_bytes(&reply[5..]).unwrap();
        assert!(reply.get("ok").unwrap().is_some(), "{reply:?}");
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The header of the next message, and what stands behind it.
async fn message_of(
    from: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<([u8; 16], Vec<u8>)> {
    let mut head = [0; 16];
    from.read_exact(&mut head).await?;
    let mut body = vec![0; usize::try_from(int(&head, 0)).unwrap() - 16];
    from.read_exact(&mut body).await?;
    Ok((head, body))
}

fn int(head: &[u8; 16], at: usize) -> i32 {
    i32::from_le_bytes(head[at..at + 4].try_into().unwrap())
}

type Client = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

async fn ask(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    client: Client,
    held: Arc<Mutex<Held>>,
) -> std::io::Result<()> {
    loop {
        let (head, body) = message_of(&mut from).await?;
        let message = [&head[..], &body].concat();
        // Not in the `match`, which would keep the lock.
        let reply = held.lock().unwrap().take(&head, &message);
        match reply {
            None => to.write_all(&message).await?,
            Some(reply) => {
                let len = i32::try_from(16 + 5 + reply.as_bytes().len()).unwrap();
                // An answer to the message of this number, without flags, of one document.
                let head = [len, 0, int(&head, 4), OP_MSG, 0].map(i32::to_le_bytes).concat();
                let message = [&head[..], &[0], reply.as_bytes()].concat();
                client.lock().await.write_all(&message).await?;
            }
        }
    }
}

impl Held {
    /// The answer to a message that is to be held, which is kept.
    fn take(&mut self, head: &[u8; 16], message: &[u8]) -> Option<RawDocumentBuf> {
        // Its sections come in any order.
        let (field, _) = self.next.as_ref().filter(|_| int(head, 12) == OP_MSG)?;
        if !message.windows(field.len()).any(|at| at == field) {
            return None;
        }
        self.message = Some(message.to_vec());
        self.next.take().map(|(_, reply)| reply)
    }
}

async fn answer(mut from: OwnedReadHalf, to: Client) -> std::io::Result<()> {
    loop {
        let (head, body) = message_of(&mut from).await?;
        // In front of the document: flags and the kind of the section, or what `OP_REPLY` has.
        let before = if int(&head, 12) == OP_MSG { 5 } else { 20 };
        let document = RawDocument::from_bytes(&body[before..]).unwrap();
        let said = as_router(document);
        let len = i32::try_from(16 + before + said.as_bytes().len()).unwrap();
        let message = [&len.to_le_bytes(), &head[4..], &body[..before], said.as_bytes()].concat();
        to.lock().await.write_all(&message).await?;
    }
}

fn as_router(said: &RawDocument) -> RawDocumentBuf {
    if !raw::fields(said).flatten().any(|field| field.name == b"setName") {
        return said.to_owned();
    }
    let mut document = Builder::default();
    document.push_str("msg", "isdbgrid");
    for field in raw::fields(said).flatten().filter(|field| !OF_A_SET.contains(&field.name)) {
        document.push_field(field);
    }
    document.finish()
}
