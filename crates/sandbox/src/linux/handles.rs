//! Handles of scratch folders, from the stage to whoever started it, over the socket that the request came by.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most scratch folders of a command.
const MOST: usize = 8;
/// The byte that the handles come with.
const READY: u8 = b'.';

/// Sends the handles. Whoever does not want any may have started the stage with a pipe.
pub fn send(to: impl AsFd, handles: &[File]) -> Result<()> {
    let handles: Vec<_> = handles.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() && !message.push(SendAncillaryMessage::ScmRights(&handles)) {
        anyhow::bail!("more than {MOST} scratch folders");
    }
    match sendmsg(to, &[IoSlice::new(&[READY])], &mut message, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::NOTSOCK) if handles.is_empty() => Ok(()),
        Err(error) => Err(error).context("cannot hand over the scratch folders"),
    }
}

/// Waits for the handles of a stage's scratch folders; none when they could not be mounted, or the stage failed.
///
/// # Errors
/// When the socket fails.
pub fn receive(from: &UnixStream) -> std::io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut buffer = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut buffer, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            // It ended before it had read the request.
            Err(Errno::CONNRESET) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut handles = Vec::new();
    for message in buffer.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            handles.extend(received);
        }
    }
    Ok(handles)
}
