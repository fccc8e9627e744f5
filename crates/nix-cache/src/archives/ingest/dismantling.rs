//! The work on an archive that takes a processor: decoding, hashing, parsing. It has a thread of its own, and hands small
//! files and directories to a task that stores them; large files go to the store as they come.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use gf_blobstore::{BlobStore, HashedBlob, OwnerId};
use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::NarHash;
use gf_nix_formats::nar::{NarEvent, NarParser};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::contents::{Contents, Gathered};
use super::decoder::Decoder;
use super::nar_hash::NarHashing;
use super::opaque::Opaque;
use super::spool::{Claim, Room, SpoolMemory};
use super::storing::Job;
use super::tree::Tree;
use super::{Halt, IngestError};
use crate::archives::{ArchiveLimits, Root};

/// A batch is handed over when its blobs have so many bytes, or are so many, or when so many bytes of the archive went by:
/// a small blob keeps the piece in memory that it came in.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_COUNT: usize = 256;
const BATCH_SPAN_BYTES: u64 = 4 << 20;

/// What is remembered of each blob: its digest in a list and in a table.
const BLOB_BYTES: usize = 160;

/// What every archive may hold without claiming it.
const FREE_BYTES: usize = 1 << 20;

/// What is found out about an archive.
pub(super) struct Dismantled {
    pub(super) file_hash: [u8; 32],
    pub(super) file_size: u64,
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
    pub(super) root: Root,
    /// All blobs of the archive, each once, in the order in which they were handed over. Not the empty one.
    pub(super) blobs: Vec<Digest>,
}

/// Where an archive goes to.
pub(super) struct Destination {
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) owner: OwnerId,
    /// Where an archive waits that no directory can hold.
    pub(super) room: Room,
    /// The memory for all else of all archives.
    pub(super) names: SpoolMemory,
    pub(super) jobs: mpsc::Sender<Job>,
    /// To wait for the store where a thread may.
    pub(super) runtime: Handle,
    /// Who reads the archive meanwhile.
    pub(super) copy: Option<mpsc::Sender<Bytes>>,
}

/// An archive under way.
pub(super) struct Dismantling {
    to: Destination,
    limits: ArchiveLimits,
    parser: NarParser,
    nar_hash: NarHashing,
    form: Form,
    /// The file that is open.
    contents: Option<(Contents, bool)>,
    /// Bytes of all files.
    contents_bytes: u64,
    batch: Vec<HashedBlob>,
    batch_bytes: usize,
    /// Where the archive was when the batch began.
    batch_began: u64,
    listed: HashSet<Digest>,
    blobs: Vec<Digest>,
    names_claim: Claim,
}

/// What becomes of the archive.
enum Form {
    Tree(Tree),
    Opaque(Opaque),
}

impl Dismantling {
    pub(super) fn new(to: Destination, limits: ArchiveLimits, nar_hash: NarHashing) -> Self {
        Self {
            to,
            limits,
            parser: NarParser::new(limits.nar()),
            nar_hash,
            form: Form::Tree(Tree::default()),
            contents: None,
            contents_bytes: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            batch_began: 0,
            listed: HashSet::new(),
            blobs: Vec::new(),
            names_claim: Claim::default(),
        }
    }

    /// Takes the whole archive apart. Blocks while the upload or the store is slower.
    pub(super) fn run(mut self, mut decoder: Decoder) -> Result<Dismantled, Halt> {
        while let Some(mut piece) = decoder.next()? {
            self.nar_hash.update(&piece)?;
            let whole = piece.clone();
            while let Some(event) = self.parser.next(&mut piece).map_err(IngestError::from)? {
                self.take(event)?;
            }
            self.check_framing()?;
            self.copy(whole);
        }
        let nar_size = self.parser.finish().map_err(IngestError::from)?;
        let (file_size, file_hash) = decoder.finish()?.finish();
        // What is left to store is stored while the last bytes are hashed.
        self.hand_over()?;
        let nar = std::mem::take(&mut self.nar_hash).finish()?;
        let root = self.end(nar)?;
        Ok(Dismantled {
            // What is not compressed was not hashed twice.
            file_hash: file_hash.unwrap_or(*nar.hash()),
            file_size,
            nar_hash: NarHash::new(*nar.hash()),
            nar_size,
            root,
            blobs: self.blobs,
        })
    }

    fn take(&mut self, event: NarEvent) -> Result<(), Halt> {
        if let NarEvent::Contents(bytes) = &event {
            self.contents_bytes += bytes.len() as u64;
        }
        let tree = match &mut self.form {
            Form::Opaque(opaque) => return opaque.write(&event),
            Form::Tree(tree) => tree,
        };
        match &event {
            NarEvent::Entry(name) if tree.enter(name).is_err() => return self.become_opaque(&event),
            NarEvent::Symlink(target) if tree.symlink(target).is_err() => return self.become_opaque(&event),
            NarEvent::Entry(_) | NarEvent::Symlink(_) => {}
            NarEvent::Directory => tree.open(),
            NarEvent::DirectoryEnd => {
                let message = HashedBlob::of(DigestFunction::Sha256, tree.close());
                tree.directory(message.digest());
                self.add(message)?;
            }
            NarEvent::File { executable, size_bytes } => {
                let contents = Contents::new(*size_bytes, &self.to).map_err(IngestError::from)?;
                self.contents = Some((contents, *executable));
            }
            NarEvent::Contents(bytes) => {
                if let Some((contents, _)) = &mut self.contents {
                    contents.add(bytes.clone()).map_err(IngestError::from)?;
                }
            }
            NarEvent::FileEnd => {
                let Some((contents, executable)) = self.contents.take() else { return Ok(()) };
                match contents.finish().map_err(IngestError::from)? {
                    Gathered::Small(blob) => {
                        tree.file(blob.digest(), executable);
                        self.add(blob)?;
                    }
                    Gathered::Stored(digest) => {
                        tree.file(digest, executable);
                        self.list(digest);
                    }
                }
            }
        }
        Ok(())
    }

    /// Enters a blob into the list, unless this archive had it before or it is empty; whether it did.
    fn list(&mut self, digest: Digest) -> bool {
        let is_first = !digest.is_empty() && self.listed.insert(digest);
        if is_first {
            self.blobs.push(digest);
        }
        is_first
    }

    /// Puts a blob into the batch. A directory can be larger than any small file.
    fn add(&mut self, blob: HashedBlob) -> Result<(), Halt> {
        if self.list(blob.digest()) {
            self.batch_bytes += blob.pieces().iter().map(Bytes::len).sum::<usize>();
            self.batch.push(blob);
        }
        let span = self.parser.position() - self.batch_began;
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_COUNT || span >= BATCH_SPAN_BYTES {
            self.hand_over()?;
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), Halt> {
        self.batch_bytes = 0;
        self.batch_began = self.parser.position();
        match std::mem::take(&mut self.batch) {
            none if none.is_empty() => Ok(()),
            batch => self.send(Job::Batch(batch)),
        }
    }

    fn send(&self, job: Job) -> Result<(), Halt> {
        self.to.jobs.blocking_send(job).map_err(|_| Halt::StoringEnded)
    }

    /// No directory can hold what came: the archive becomes one blob, from its beginning. `event` is what came.
    fn become_opaque(&mut self, event: &NarEvent) -> Result<(), Halt> {
        self.hand_over()?;
        // What was handed over must be there to be read back.
        let (settled, is_settled) = oneshot::channel();
        self.send(Job::Settle(settled))?;
        is_settled.blocking_recv().map_err(|_| Halt::StoringEnded)?;
        let Form::Tree(tree) = &mut self.form else { return Ok(()) };
        let tree = std::mem::take(tree);
        let mut opaque = Opaque::new(self.limits.nar(), &self.to.room);
        self.to.runtime.block_on(opaque.replay(self.to.store.as_ref(), self.to.owner, tree))?;
        opaque.write(event)?;
        self.form = Form::Opaque(opaque);
        self.listed.clear();
        self.blobs.clear();
        Ok(())
    }

    /// What the archive is, after its last event.
    fn end(&mut self, nar: Digest) -> Result<Root, Halt> {
        match std::mem::replace(&mut self.form, Form::Tree(Tree::default())) {
            // The parser saw a whole archive, so there is a root.
            Form::Tree(tree) => {
                tree.into_root().ok_or_else(|| IngestError::Scratch(io::Error::other("no root")).into())
            }
            Form::Opaque(opaque) => {
                let spooled = opaque.finish()?;
                if self.list(nar) {
                    self.send(Job::Upload(nar, spooled))?;
                }
                Ok(Root::Opaque(nar))
            }
        }
    }

    /// Hands on what came, to who keeps up.
    fn copy(&mut self, piece: Bytes) {
        if self.to.copy.as_ref().is_some_and(|copy| copy.try_send(piece).is_err()) {
            self.to.copy = None;
        }
    }

    fn check_framing(&mut self) -> Result<(), Halt> {
        let limit_bytes = self.limits.framing_bytes;
        let framing_bytes = self.parser.position() - self.contents_bytes;
        if framing_bytes > limit_bytes {
            return Err(IngestError::TooManyNames { limit_bytes }.into());
        }
        // The framing is all that the tree and its messages are made of.
        let held_bytes =
            usize::try_from(framing_bytes).unwrap_or(usize::MAX).saturating_add(self.blobs.len() * BLOB_BYTES);
        if held_bytes > FREE_BYTES && !self.names_claim.grow(&self.to.names, held_bytes) {
            return Err(IngestError::Busy.into());
        }
        Ok(())
    }
}
