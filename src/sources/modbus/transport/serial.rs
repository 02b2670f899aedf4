//! A serial port: 8 data bits, raw mode, opened exclusively.
//!
//! Written by hand because tokio-serial would add eight crates, one of them under the MPL.

use super::super::address::{Parity, Serial};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{ControlModes, OptionalActions, QueueSelector};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug)]
pub(super) struct Port(AsyncFd<OwnedFd>);

impl Port {
    /// Opens and configures a port; discards the bytes that it has received before.
    pub(super) fn open(path: &Path, settings: &Serial) -> io::Result<Self> {
        let port =
            rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let mut termios = rustix::termios::tcgetattr(&port)?;
        rustix::termios::ioctl_tiocexcl(&port)?;
        termios.make_raw();
        let all = ControlModes::CSIZE | ControlModes::CSTOPB | ControlModes::PARENB | ControlModes::PARODD;
        termios.control_modes.remove(all | ControlModes::CRTSCTS);
        // CLOCAL: ignore the modem's carrier signal.
        let mut modes = ControlModes::CS8 | ControlModes::CLOCAL | ControlModes::CREAD;
        modes |= match settings.parity {
            Parity::Even => ControlModes::PARENB,
            Parity::Odd => ControlModes::PARENB | ControlModes::PARODD,
            Parity::None => ControlModes::empty(),
        };
        let stop_bits = settings.stop_bits.unwrap_or(if settings.parity == Parity::None { 2 } else { 1 });
        if stop_bits == 2 {
            modes |= ControlModes::CSTOPB;
        }
        termios.control_modes.insert(modes);
        termios.set_speed(settings.baud)?;
        rustix::termios::tcsetattr(&port, OptionalActions::Now, &termios)?;
        rustix::termios::tcflush(&port, QueueSelector::IOFlush)?;
        #[expect(deprecated, reason = "its successor needs unsafe code; an OwnedFd keeps what is asked of it there")]
        let port = AsyncFd::new(port)?;
        Ok(Self(port))
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let room = into.initialize_unfilled();
            // An error means that the port was not ready after all.
            if let Ok(read) = ready.try_io(|port| Ok(rustix::io::read(port.get_ref(), room)?)) {
                into.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            if let Ok(written) = ready.try_io(|port| Ok(rustix::io::write(port.get_ref(), bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
