// One peer's image, read by extents over a kept connection. Its insides are
// those of peers.h; nobody else includes it.
#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "pkg/exec/rate_limiter.h"
#include "pkg/http/client.h"
#include "pkg/transfer/peers.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

// "http://10.0.0.1:9501/v1/images/<name>/<uuid>/"
std::string ImageUrl(const PeerInfo& peer, const store::ImageKey& key);
http::Deadlines DeadlinesOf(const PeerOptions& options);

class PeerSource : public Source {
 public:
  // `manifest`, `limiter` and `progress` (these two may be null) outlive it.
  PeerSource(const Peer& peer, const store::ImageRecord& manifest,
             const PeerOptions& options, exec::RateLimiter* limiter,
             Progress* progress);

  // Only ranges with an end. The validator is not asked for: what identifies
  // the content is the manifest's SHA-512, which the peer must confirm.
  // FAILED_PRECONDITION: it has another image now; DATA_LOSS: its answer makes
  // no sense.
  Outcome Read(const Range& range, const std::string& validator,
               SourceSink& sink, std::stop_token stop) override;
  const std::string& address() const { return address_; }

 private:
  class Body;
  Outcome ReadPart(const Range& part, SourceSink& sink, std::stop_token stop);
  bool WantsCompression() const;

  const std::string address_;
  const std::string url_;
  const store::ImageRecord& manifest_;
  const PeerOptions& options_;
  exec::RateLimiter* const limiter_;
  Progress* const progress_;
  const std::unique_ptr<http::Client> client_;
  // What raw answers showed of the way to the peer.
  uint64_t raw_bytes_ = 0;
  double raw_seconds_ = 0;
  int not_compressed_ = 0;  // asked for, in a row
};

}  // namespace bim::transfer
