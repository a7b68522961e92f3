// Sends a file to a receiver that is not one of ours, by Longhorn's protocol
// between peers ("ssync"): open, then its data and its holes by intervals, then
// close. HTTP to the receiver's port, without any proxy.
//
// Data goes in batches of at most 2 MiB that hold no block of a hole; a hole is
// told as one interval, of any length. Intervals are handed out in ascending
// order to several connections. Memory is bounded: half a MiB a connection.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "pkg/base/status.h"
#include "pkg/exec/rate_limiter.h"

namespace bim::transfer {

struct PushDeadlines {
  // The receiver may not be there yet: `open` is tried for so long.
  std::chrono::milliseconds open_retry{120'000};
  std::chrono::milliseconds connect{10'000};
  // While the receiver is awaited: without a byte that moved, to or from any of
  // the connections. (A single one is given up, and its interval sent again,
  // after four times that.) Time spent reading the file, or in the limiter,
  // does not count. A slow receiver may take as long as it likes.
  std::chrono::milliseconds stall{30'000};
  // For the whole close after a failure or a stop.
  std::chrono::milliseconds abort{1'000};
};

struct PushSpec {
  std::string address;     // "host:port" of the receiver
  int file = -1;           // borrowed, open for reading; its offset is moved
  uint64_t size = 0;       // of the file, in bytes
  std::string sha512_hex;  // of the whole, told at the close; may be empty
  // Whether the file is still what it was: asked for each interval, and once
  // more before the close of a success. A failure ends the sending with it.
  // Called on several threads, one call at a time; may be empty.
  std::function<base::Status()> check;
  // Of bytes of data; nullptr: none. Outlives the call.
  exec::RateLimiter* limiter = nullptr;
  // How many bytes (holes included) were acknowledged so far, ascending. Called
  // on several threads, one call at a time; may be empty. Must not block.
  std::function<void(uint64_t)> on_bytes;
  PushDeadlines deadlines;
  size_t workers = 4;  // connections, at least 1
};

// Blocks until the receiver has acknowledged all, and the close. If it had the
// file before, intervals whose SHA-512 it tells to be the same are not sent
// again. After a failure or a stop, too, it is told to close, without a
// checksum, since it would wait for long otherwise: what a receiver has when it
// is closed is its own to prove.
//
// An interval whose connection breaks is tried again a few times; the receiver
// may get it twice. Errors: CANCELLED: stopped (within 100 ms, and what the
// close takes); DEADLINE_EXCEEDED or UNAVAILABLE: the receiver was never there,
// stalled or vanished; FAILED_PRECONDITION: it answered with another status
// than 200 (its text is in the message), or not by this protocol;
// INVALID_ARGUMENT: no such address; DATA_LOSS: the file became shorter; what
// `check` returned.
base::Status Push(const PushSpec& spec, std::stop_token stop);

}  // namespace bim::transfer
