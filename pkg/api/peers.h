// Asks other daemons who they are, by VersionGet.
//
// What a peer says is judged, not believed: its id must be a name, its versions
// a range, and of its data endpoint only the port counts. The address that is
// handed on is the one that answered, so that a peer cannot send us elsewhere.
// Thread-safety: all functions from any thread.
#pragma once

#include "pkg/api/negotiation.h"
#include "pkg/transfer/peers.h"

namespace bim::api {

class GrpcPeers final : public transfer::PeerResolver {
 public:
  // `versions`: what we say that we speak.
  explicit GrpcPeers(meta::VersionRange versions = OurVersions())
      : versions_(versions) {}

  // A name is resolved each time; of several addresses the first that connects
  // is asked. Besides the errors of the interface: INVALID_ARGUMENT for what
  // is no address, CANCELLED when stopped. PeerInfo.ip has no brackets,
  // api_version is the newest that the peer speaks.
  base::Result<transfer::PeerInfo> Resolve(const std::string& address,
                                           std::chrono::milliseconds timeout,
                                           std::stop_token stop) override;

 private:
  const meta::VersionRange versions_;
};

}  // namespace bim::api
