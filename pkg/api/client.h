// The other side of proto/bim/v1: for the command line and for daemons.
//
// Blocks in Connect. Thread-safety: after Connect all functions from any
// thread, as gRPC's stubs.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <string>

#include "bim/v1/node.grpc.pb.h"
#include "pkg/api/address.h"
#include "pkg/api/grpc_status.h"
#include "pkg/api/negotiation.h"
#include "pkg/base/status.h"
#include "pkg/meta/version.h"

namespace bim::api {

class Client {
 public:
  // `address`: "host:port", "[v6]:port" or "unix:/path", paths of any length;
  // ":port" is this machine. Proxies of the environment are not used.
  // INVALID_ARGUMENT: not an address. UNAVAILABLE: "cannot reach the daemon at
  // 127.0.0.1:9500: Connection refused: is it running?". Other versions are
  // not found out here but by the first call.
  static base::Result<std::unique_ptr<Client>> Connect(
      const std::string& address, std::chrono::milliseconds timeout);

  v1::VersionService::Stub& version() { return *version_; }
  v1::DiskService::Stub& disks() { return *disks_; }
  v1::ImageService::Stub& images() { return *images_; }
  v1::LimitService::Stub& limits() { return *limits_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  const std::string& address() const { return address_; }

  // Puts our versions and the deadline into the context of one call. 0: no
  // deadline, for Watch and Verify.
  static void PrepareContext(
      grpc::ClientContext& context, std::chrono::milliseconds timeout,
      const meta::VersionRange& versions = OurVersions());

 private:
  Client(std::string address, UnixPath unix_path,
         std::shared_ptr<grpc::Channel> channel);

  const std::string address_;
  const UnixPath unix_path_;  // holds the directory that the channel goes by
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::VersionService::Stub> version_;
  const std::unique_ptr<v1::DiskService::Stub> disks_;
  const std::unique_ptr<v1::ImageService::Stub> images_;
  const std::unique_ptr<v1::LimitService::Stub> limits_;
};

}  // namespace bim::api
