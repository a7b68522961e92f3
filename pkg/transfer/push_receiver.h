// The receiving side of Longhorn's push protocol ("ssync"): a sender connects
// and brings a file's intervals, data and holes, over several connections, in
// any order, and again when it had no answer in time.
//
//   GET  /v1-ssync/open?begin=0&end=SIZE           the size
//   POST /v1-ssync/sendHole?begin=B&end=E          zeros
//   POST /v1-ssync/writeData?begin=B&end=E         min(E, SIZE) - B bytes
//   GET  /v1-ssync/getChecksum?begin=B&end=E       a digest, or null
//   POST /v1-ssync/close?checksumMethod=M&checksum=H   the sender is done
//
// E may exceed SIZE by less than 64 KiB. `open` is answered `true` when bytes
// of an earlier sender are gone on with, else `false`; getChecksum with the
// base64 of the SHA-512 of an interval whose chunks are complete (at most 64
// MiB), else `null`. A close proves nothing: the ingest tells whether every
// byte came, and the SHA-512 of the whole must be the one that a close with
// checksumMethod=sha512 tells. What breaks these rules is answered 400 with one
// line that says why, and fails the receive as a whole; before the open it is
// answered 400 and nothing else, for it may come from an older sender.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/rate_limiter.h"
#include "pkg/exec/worker_pool.h"
#include "pkg/store/ingest.h"
#include "pkg/transfer/pull.h"

namespace bim::transfer {

struct PushReceiveSpec {
  uint64_t expected_size = 0;  // 0: as the sender's open says
  uint64_t max_size = 0;       // 0: no limit
  std::string validator;       // for Ingest::Begin; may be empty
  // Both may be null; they outlive the call. (Senders give a request 5 s: a
  // limit under which 8 MiB take longer makes them fail.)
  exec::RateLimiter* limiter = nullptr;
  Progress* progress = nullptr;                    // wire_bytes: of bodies
  std::chrono::milliseconds open_timeout{60'000};  // until the sender's open
  std::chrono::milliseconds stall{30'000};  // without any byte or request
};

// Restores what an earlier process left of what ReceivePush is to go on with,
// if anything. It takes as long as reading that does: done before the sender is
// asked, who waits for 2 minutes at most. (ReceivePush does it otherwise.)
base::Status RestorePushed(store::Ingest& ingest, const PushReceiveSpec& spec,
                           std::stop_token stop);

// Serves connections of `listener`, a listening socket, until the sender
// closed, gave up or broke the rules, or `stop`. What came is in `ingest`,
// which is opened, and begun or restored here (an earlier ReceivePush into the
// same one is gone on with, given a validator); when every byte came it is
// committed. `on_bytes` is called once, on the caller's thread, when a sender
// opened. `pool` runs the requests: one whose threads others do not fill.
// In the outcome kTransient: no sender came, it stalled, or closed early (what
// came can be resumed, given a validator); kWrong: it broke the rules, gave
// other bytes again, or closed with the SHA-512 of another file; kPermanent:
// its file cannot be the one that is expected; else as Pull's.
PullResult ReceivePush(store::Ingest& ingest, base::UniqueFd listener,
                       exec::EventLoop& loop, exec::WorkerPool& pool,
                       const PushReceiveSpec& spec,
                       const std::function<void()>& on_bytes,
                       std::stop_token stop);

}  // namespace bim::transfer
