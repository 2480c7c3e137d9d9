//! What the TCP connections of processes on this machine carry. The kernel counts it for each socket
//! and tells who asks by `sock_diag(7)`; whose a socket is stands in `/proc`. What a connection carried
//! that came and went between two looks is not seen.

use std::{collections::HashMap, fs, io, ops::AddAssign};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SOCK_DIAG, recv, send,
    socket_with,
};

/// A kernel's answer comes in parts, none of which is larger (`NLMSG_GOODSIZE` is at most this).
const MOST_BYTES: usize = 32 * 1024;

/// Bytes since a socket was opened, without the heads of packets and what was sent again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// Sockets by inode.
pub(crate) type Sockets = HashMap<u64, Carried>;

/// The TCP sockets of our network namespace.
pub(crate) fn sockets() -> io::Result<Sockets> {
    let mut found = Sockets::new();
    for family in [AF_INET, AF_INET6] {
        ask(family, &mut found)?;
    }
    Ok(found)
}

fn ask(family: u8, found: &mut Sockets) -> io::Result<()> {
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    let mut head = NetlinkHeader::default();
    head.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all().difference(StateFlags::LISTEN | StateFlags::TIME_WAIT),
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut message = NetlinkMessage::new(head, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    send(&kernel, &buffer, SendFlags::empty())?;

    buffer.resize(MOST_BYTES, 0);
    loop {
        let (n_read, _) = recv(&kernel, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..n_read];
        while !rest.is_empty() {
            let message: NetlinkMessage<SockDiagMessage> =
                NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            // At least its own head, so that this ends; each begins at a multiple of four.
            let length = (message.header.length as usize).max(16).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                    found.extend(carried(&socket));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => (),
            }
        }
    }
}

fn carried(socket: &InetResponse) -> Option<(u64, Carried)> {
    let info = socket.nlas.iter().find_map(|it| match it {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    })?;
    let carried = Carried { sent: info.bytes_acked, received: info.bytes_received };
    Some((u64::from(socket.header.inode), carried))
}

/// What the connections of one process carried, also of those that it has closed.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    open: Sockets,
    closed: Carried,
}

impl Traffic {
    /// Up to now; nothing for who may not look at the process, or if its network is not ours.
    pub(crate) fn look(&mut self, pid: u32, sockets: &Sockets) -> Option<Carried> {
        let network = |whose: &str| fs::read_link(format!("/proc/{whose}/ns/net")).ok();
        if network(&pid.to_string())? != network("self")? {
            return None;
        }
        let inodes = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(|it| {
            let held = fs::read_link(it.ok()?.path()).ok()?;
            held.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        });
        let open = inodes.filter_map(|it: u64| Some((it, *sockets.get(&it)?))).collect();
        Some(self.follow(open))
    }

    fn follow(&mut self, open: Sockets) -> Carried {
        for (inode, last) in std::mem::replace(&mut self.open, open) {
            // One that carried less than before is another, whose inode was free again.
            if self.open.get(&inode).is_none_or(|now| now.sent < last.sent) {
                self.closed += last;
            }
        }
        let mut all = self.closed;
        for carried in self.open.values() {
            all += *carried;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Other tests of this process have connections too, so it is at least what this one's carried.
    #[test]
    fn what_connections_carry_is_counted_also_when_they_are_closed() {
        let (pid, mut traffic) = (std::process::id(), Traffic::default());
        let look = |traffic: &mut Traffic| traffic.look(pid, &sockets().unwrap()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut other, _) = listener.accept().unwrap();
            let before = look(&mut traffic);
            one.write_all(&[7; 100_000]).unwrap();
            other.read_exact(&mut [0; 100_000]).unwrap();
            // The other end's acknowledgement may take a moment.
            let sent = (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                before.sent + 100_000 <= look(&mut traffic).sent
            });
            assert!(sent);
            let during = look(&mut traffic);
            assert!(before.received + 100_000 <= during.received);
            drop((one, other));
            let after = look(&mut traffic);
            assert!(during.sent <= after.sent && during.received <= after.received);
        }
    }

    #[test]
    fn an_inode_that_is_used_again_is_another_socket() {
        let of = |bytes| Carried { sent: bytes, received: 2 * bytes };
        let mut traffic = Traffic::default();
        assert_eq!(traffic.follow([(1, of(10)), (2, of(20))].into()), of(30));
        assert_eq!(traffic.follow([(2, of(25))].into()), of(35));
        assert_eq!(traffic.follow(Sockets::new()), of(35));
        assert_eq!(traffic.follow([(1, of(5))].into()), of(40));
        // Fewer than before: the first was closed between two looks.
        assert_eq!(traffic.follow([(1, of(3))].into()), of(43));
    }

    #[test]
    fn nobody_knows_of_a_process_that_is_not_there() {
        assert_eq!(Traffic::default().look(u32::MAX, &Sockets::new()), None);
    }
}
