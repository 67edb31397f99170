//! An Ethernet switch inside the VM's process: a port for each network interface of the VM, and one for a peer that answers ARP and
//! ICMP echo. Nothing leaves the process, so a cell stays what it is.

use std::collections::{BTreeMap, VecDeque};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// The peer's addresses.
const PEER_MAC: Mac = [0x58, 0x9c, 0xfc, 0, 0, 0xfe];
const PEER_IP: [u8; 4] = [10, 0, 2, 2];
/// How many frames wait for an interface; more are lost.
const INBOX: usize = 256;
/// How many addresses are kept.
const LEARNED: usize = 256;

/// The switch.
#[derive(Debug, Default)]
pub(crate) struct Switch {
    /// What waits for each port.
    inboxes: Vec<VecDeque<Vec<u8>>>,
    /// Where an address was seen last.
    learned: BTreeMap<Mac, usize>,
}

impl Switch {
    /// A port more. Returns its number.
    pub(super) fn add_port(&mut self) -> usize {
        self.inboxes.push(VecDeque::new());
        self.inboxes.len() - 1
    }

    /// Whether a frame waits for this port.
    pub(super) fn waiting(&self, port: usize) -> bool {
        !self.inboxes[port].is_empty()
    }

    /// The frame that waits longest.
    pub(super) fn take(&mut self, port: usize) -> Option<Vec<u8>> {
        self.inboxes[port].pop_front()
    }

    /// A frame from a port: to the port of its destination, or to all others.
    pub(super) fn send(&mut self, from: usize, frame: &[u8]) {
        let Some((destination, source)) = addresses(frame) else { return };
        if source[0] & 1 == 0 && (self.learned.len() < LEARNED || self.learned.contains_key(&source)) {
            self.learned.insert(source, from);
        }
        match self.learned.get(&destination) {
            Some(&port) if port != from => self.deliver(port, frame),
            Some(_) => {}
            None if destination == PEER_MAC => {}
            None => (0..self.inboxes.len()).filter(|port| *port != from).for_each(|port| self.deliver(port, frame)),
        }
        if matches!(destination, PEER_MAC | BROADCAST)
            && let Some(answer) = answer(frame)
        {
            self.deliver(from, &answer);
        }
    }

    fn deliver(&mut self, port: usize, frame: &[u8]) {
        let inbox = &mut self.inboxes[port];
        if inbox.len() < INBOX {
            inbox.push_back(frame.to_vec());
        }
    }
}

/// Destination and source.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (destination, rest) = frame.split_first_chunk()?;
    let (source, _) = rest.split_first_chunk()?;
    Some((*destination, *source))
}

/// What the peer says to a frame.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV4: [u8; 2] = [0x08, 0x00];
    let (head, payload) = frame.split_first_chunk::<14>()?;
    let answer = match [head[12], head[13]] {
        ARP => arp(payload)?,
        IPV4 => echo(payload)?,
        _ => return None,
    };
    let mut bytes = [&head[6..12], &PEER_MAC, &head[12..14], &answer].concat();
    // The shortest frame, without its check sequence.
    bytes.resize(bytes.len().max(60), 0);
    Some(bytes)
}

/// Who has the peer's address? (RFC 826)
fn arp(packet: &[u8]) -> Option<Vec<u8>> {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
    let packet = packet.first_chunk::<28>()?;
    let asked = packet[..8] == REQUEST && packet[24..] == PEER_IP;
    asked.then(|| [&REPLY[..], &PEER_MAC, &PEER_IP, &packet[8..18]].concat())
}

/// ICMP echo to the peer (RFC 792), in a datagram that is whole (RFC 791).
fn echo(datagram: &[u8]) -> Option<Vec<u8>> {
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const FRAGMENT: u8 = 0x3f;
    let header_len = usize::from(datagram.first()? & 0xf) * 4;
    let len = usize::from(u16::from_be_bytes([*datagram.get(2)?, *datagram.get(3)?]));
    let datagram = datagram.get(..len)?;
    let (header, message) = (datagram.get(..header_len)?, datagram.get(header_len..)?);
    let whole = header_len >= 20 && header[0] >> 4 == 4 && header[6] & FRAGMENT == 0 && header[7] == 0;
    if !whole || header[9] != ICMP || header[16..20] != PEER_IP || checksum(header) != 0 || checksum(message) != 0 {
        return None;
    }
    if message.len() < 8 || message[0] != ECHO_REQUEST {
        return None;
    }
    // Source and destination change places, which leaves the header's checksum as it is.
    let mut header = header.to_vec();
    header.copy_within(12..16, 16);
    header[12..16].copy_from_slice(&PEER_IP);
    let mut message = message.to_vec();
    message[0] = ECHO_REPLY;
    message[2..4].fill(0);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    Some([header, message].concat())
}

/// The Internet checksum (RFC 1071): 0 over bytes that have their own in them.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) const GUEST: Mac = [2, 0, 0, 0, 0, 1];

    fn frame(to: Mac, from: Mac, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&to[..], &from, &kind, payload].concat()
    }

    pub(in super::super) fn who_has_the_peer() -> Vec<u8> {
        let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST, &[10, 0, 2, 15], &[0; 6], &PEER_IP].concat();
        frame(BROADCAST, GUEST, [8, 6], &packet)
    }

    fn ping() -> Vec<u8> {
        let mut header = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 1, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
        let mut message = *b"\x08\0\0\0\0\x07\0\x01spinup!";
        header[3] = (header.len() + message.len()) as u8;
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        frame(PEER_MAC, GUEST, [8, 0], &[&header[..], &message].concat())
    }

    #[test]
    fn the_peer_answers() {
        let mut switch = Switch::default();
        let port = switch.add_port();
        switch.send(port, &who_has_the_peer());
        let reply = switch.take(port).expect("an answer");
        assert_eq!(
            (&reply[..6], &reply[6..12], reply[21], &reply[22..28], &reply[28..32]),
            (&GUEST[..], &PEER_MAC[..], 2, &PEER_MAC[..], &PEER_IP[..])
        );
        assert_eq!((&reply[32..38], &reply[38..42], reply.len()), (&GUEST[..], &[10, 0, 2, 15][..], 60));
        switch.send(port, &ping());
        let reply = switch.take(port).expect("an answer");
        assert_eq!((&reply[26..30], &reply[30..34], reply[34]), (&PEER_IP[..], &[10, 0, 2, 15][..], 0));
        assert_eq!((checksum(&reply[14..34]), checksum(&reply[34..49]), &reply[42..49]), (0, 0, &b"spinup!"[..]));
        let mut wrong = ping();
        wrong[45] ^= 1;
        switch.send(port, &wrong);
        assert_eq!(switch.take(port), None, "its checksum is wrong");
    }

    #[test]
    fn frames_find_their_port() {
        let mut switch = Switch::default();
        let [a, b, c] = [0; 3].map(|_| switch.add_port());
        let mac = |n| [2, 0, 0, 0, 0, n];
        switch.send(a, &frame(mac(2), mac(1), [0x88, 0xb5], b"who knows you"));
        assert_eq!(
            [a, b, c].map(|port| switch.take(port).is_some()),
            [false, true, true],
            "nobody knows: to all others"
        );
        switch.send(b, &frame(mac(1), mac(2), [0x88, 0xb5], b"I am here"));
        assert_eq!([a, b, c].map(|port| switch.take(port).is_some()), [true, false, false]);
        for _ in 0..1000 {
            switch.send(a, &frame(mac(2), mac(1), [0x88, 0xb5], b"flood"));
        }
        assert_eq!(std::iter::from_fn(|| switch.take(b)).count(), INBOX);
    }

    proptest! {
        #[test]
        fn no_frame_panics(mut frame in prop::collection::vec(any::<u8>(), 0..80), to_peer: bool, ip: bool) {
            if to_peer && frame.len() >= 14 {
                frame[..6].copy_from_slice(&PEER_MAC);
                frame[12..14].copy_from_slice(if ip { &[8, 0] } else { &[8, 6] });
            }
            let mut switch = Switch::default();
            let port = switch.add_port();
            switch.send(port, &frame);
            let _answer = switch.take(port);
        }
    }
}
