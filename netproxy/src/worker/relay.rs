//! Bytes both ways, untouched, with half-close: each side may end its own
//! direction while the other goes on.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

/// Buffer of one direction, in bytes.
const BUFFER: usize = 16 * 1024;

/// Relays until both directions have ended; bytes from client and from server.
/// An upstream stream only exists where a permit was dialled.
pub(super) async fn run(mut client: TcpStream, mut upstream: TcpStream) -> (u64, u64) {
    let _latency = client.set_nodelay(true);
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER)
        .await
        .unwrap_or_default()
}
