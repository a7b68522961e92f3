// Settings of all transfers. A value.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/http/client.h"

namespace bim::transfer {

// Quick retries of one attempt before it counts as failed.
struct RetryOptions {
  int max_tries = 5;  // without progress in between
  std::chrono::milliseconds first{1'000};
  std::chrono::milliseconds max{30'000};
};

// An IPv4 or IPv6 network. A value.
struct Network {
  std::array<uint8_t, 16> address{};  // IPv4: mapped (::ffff:a.b.c.d)
  int prefix = 128;                   // bits, of the 128
  // "10.0.0.0/8", "fd00::/8", or an address alone. INVALID_ARGUMENT.
  static base::Result<Network> Parse(std::string_view text);
  // `ip`: an address as text. False when it is none.
  bool Contains(std::string_view ip) const;
};

// Whether chunks travel compressed between daemons.
enum class WireCompression {
  kOff,
  kAuto,  // when the way to the peer is slower than compressing
  kOn,    // always asked for
};

struct PeerOptions {
  // A peer from one of these networks is trusted: what it sends is ready when
  // each chunk is as its manifest says; the SHA-512 of the whole is computed
  // anew in the background. Others are not ready before that.
  std::vector<Network> trusted;
  WireCompression compression = WireCompression::kAuto;
  size_t connections = 4;  // of one transfer, to all its peers together
  // A peer that sent something wrong, or cannot be reached, is not asked again
  // for this long by any transfer (doubled each time, at most 10 min).
  std::chrono::milliseconds penalty{60'000};
  std::chrono::milliseconds connect{5'000};  // see http::Deadlines
  std::chrono::milliseconds first_byte{30'000};
  std::chrono::milliseconds stall{10'000};
};

struct Options {
  // file:// sources are refused unless allowed; with roots, only below one of
  // them.
  bool allow_file = false;
  std::vector<std::string> file_roots;
  std::string proxy;  // for http and https sources; see http::GetRequest
  std::string no_proxy;
  std::string ca_file;
  std::string credentials_dir;  // empty: no credentials
  // The largest file accepted, in bytes.
  uint64_t max_image_size = uint64_t{16} << 40;
  http::Deadlines deadlines;
  RetryOptions retry;
  // Connections to one origin that a download may use when it supports ranges
  // and that is faster, 1 to 8.
  size_t connections = 8;
  PeerOptions peers;
};

}  // namespace bim::transfer
