//! The archive of a path, made from its files while it is sent.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use gf_nix_formats::nar::{NarEvent, NarLimits, NarName, NarTarget, NarWriter};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;

use crate::client::Body;

/// What is read of a file at once.
const READ_BYTES: usize = 256 << 10;
/// Pieces that are ready and not sent yet.
const PIECES_AHEAD: usize = 16;

/// What stands before an archive, and the archive of `path`. A file that cannot be read breaks the body off.
pub(super) fn body(before: Bytes, path: PathBuf) -> Body {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let sink = Sink { sender, sent: 0 };
        sink.send_all(before, &path);
    });
    Pieces(pieces).boxed_unsync()
}

struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Where pieces go.
struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    sent: u64,
}

impl Sink {
    fn send_all(mut self, before: Bytes, path: &Path) {
        let mut nar = Nar { writer: NarWriter::new(NarLimits::default()), chunks: Vec::new() };
        let result = self.send(before).and_then(|()| nar.node(path, &mut self)).and_then(|()| nar.finish(&mut self));
        if let Err(error) = result {
            // Nobody hears it who has gone.
            let _ = self.sender.blocking_send(Err(error));
        }
    }

    fn send(&mut self, piece: Bytes) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        self.sent += piece.len() as u64;
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct Nar {
    writer: NarWriter,
    chunks: Vec<Bytes>,
}

impl Nar {
    fn event(&mut self, event: &NarEvent, sink: &mut Sink) -> io::Result<()> {
        self.writer.write(event, &mut self.chunks).map_err(io::Error::other)?;
        self.chunks.drain(..).try_for_each(|chunk| sink.send(chunk))
    }

    fn finish(mut self, sink: &mut Sink) -> io::Result<()> {
        self.writer.finish(&mut self.chunks).map_err(io::Error::other)?;
        self.chunks.drain(..).try_for_each(|chunk| sink.send(chunk))
    }

    fn node(&mut self, path: &Path, sink: &mut Sink) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_symlink() {
            let target = fs::read_link(path)?.into_os_string().into_vec();
            let target = NarTarget::new(target.into()).map_err(io::Error::other)?;
            self.event(&NarEvent::Symlink(target), sink)
        } else if metadata.is_dir() {
            self.event(&NarEvent::Directory, sink)?;
            let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            for name in names {
                let entry = NarName::new(Bytes::copy_from_slice(name.as_bytes())).map_err(io::Error::other)?;
                self.event(&NarEvent::Entry(entry), sink)?;
                self.node(&path.join(name), sink)?;
            }
            self.event(&NarEvent::DirectoryEnd, sink)
        } else if metadata.is_file() {
            let executable = metadata.permissions().mode() & 0o100 != 0;
            self.file(path, executable, metadata.len(), sink)
        } else {
            Err(io::Error::other(format!("{} is no file, folder or link", path.display())))
        }
    }

    fn file(&mut self, path: &Path, executable: bool, size_bytes: u64, sink: &mut Sink) -> io::Result<()> {
        self.event(&NarEvent::File { executable, size_bytes }, sink)?;
        let mut file = File::open(path)?;
        let mut left = size_bytes;
        while left > 0 {
            let mut buffer = BytesMut::zeroed(usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES));
            file.read_exact(&mut buffer)?;
            left -= buffer.len() as u64;
            self.event(&NarEvent::Contents(buffer.freeze()), sink)?;
        }
        self.event(&NarEvent::FileEnd, sink)
    }
}

#[cfg(test)]
mod tests {
    use gf_nix_formats::NarHash;

    use super::*;

    #[tokio::test]
    async fn an_archive_is_what_nix_would_make() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("b")).unwrap();
        fs::write(root.join("b/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("b/run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join("a"), vec![7; READ_BYTES + 3]).unwrap();
        std::os::unix::fs::symlink("../a", root.join("b/link")).unwrap();
        let before = Bytes::from_static(b"{}");
        let sent = body(before, root).collect().await.unwrap().to_bytes();
        assert_eq!(&sent[..2], b"{}");
        let mut parser = gf_nix_formats::nar::NarParser::new(NarLimits::default());
        let (mut rest, mut names) = (sent.slice(2..), Vec::new());
        while let Some(event) = parser.next(&mut rest).unwrap() {
            if let NarEvent::Entry(name) = event {
                names.push(name.as_str().unwrap().to_owned());
            }
        }
        assert_eq!(parser.finish().unwrap(), sent.len() as u64 - 2);
        assert_eq!(names, ["a", "b", "link", "run"]);
        assert_eq!(NarHash::of(&sent[2..]), NarHash::of(&sent.slice(2..)));
    }

    #[tokio::test]
    async fn a_file_that_is_gone_breaks_the_body_off() {
        let folder = tempfile::tempdir().unwrap();
        assert!(body(Bytes::new(), folder.path().join("gone")).collect().await.is_err());
    }
}
