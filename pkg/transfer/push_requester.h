// Who is asked to push an image to a receiver of ours (push_receiver.h): a
// manager that is not ours, or a volume's replica. Implemented above, where
// gRPC is known.
#pragma once

#include <chrono>
#include <cstdint>
#include <stop_token>
#include <string>

#include "pkg/base/status.h"
#include "pkg/store/layout.h"

namespace bim::transfer {

// A snapshot of a volume, by the replica that has it.
struct VolumeExport {
  std::string address;  // "host:port" of the replica
  std::string snapshot;
  std::chrono::seconds client_timeout{60};  // told to the replica
  uint64_t size = 0;  // of the volume, in bytes; 0: not known
  friend bool operator==(const VolumeExport&, const VolumeExport&) = default;
};

class PushRequester {
 public:
  virtual ~PushRequester() = default;
  // Asks the manager at `address` to push the image to `to` ("host:port").
  // Blocks until it has agreed, at most 30 s. What it says when it refuses.
  virtual base::Status AskSend(const std::string& address,
                               const store::ImageKey& key,
                               const std::string& to, std::stop_token stop) = 0;
  // Asks the replica to export to host and port. Blocks for as long as the
  // export takes, or until stopped (CANCELLED, within 100 ms or so).
  virtual base::Status AskExport(const VolumeExport& volume,
                                 const std::string& host, uint16_t port,
                                 std::stop_token stop) = 0;
};

}  // namespace bim::transfer
