// The real resolver against real servers on loopback.
#include "pkg/api/peers.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "bim/v1/node.grpc.pb.h"
#include "pkg/api/address.h"
#include "pkg/api/listener.h"
#include "pkg/api/node_server.h"
#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kTimeout{10'000};

// Answers VersionGet with anything.
class Liar final : public v1::VersionService::Service {
 public:
  v1::VersionGetResponse answer;
  grpc::Status status;

  grpc::Status VersionGet(grpc::ServerContext*, const v1::VersionGetRequest*,
                          v1::VersionGetResponse* response) override {
    *response = answer;
    return status;
  }
};

class GrpcPeersTest : public testing::Test {
 protected:
  ~GrpcPeersTest() override {
    server_.reset();
    pool_.Shutdown();
  }

  // Its address.
  std::string StartDaemon(NodeServer::Options options,
                          const std::string& listen = "127.0.0.1:0") {
    auto listener = Listen(listen);
    EXPECT_TRUE(listener.ok()) << listener.status().ToString();
    const std::string address = listener->address;
    std::vector<base::UniqueFd> listeners;
    listeners.push_back(std::move(listener->fd));
    auto server = NodeServer::Start(std::move(options), manager_, loop_, pool_,
                                    std::move(listeners));
    EXPECT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    return address;
  }

  // A gRPC server with `service`, or with none.
  std::string StartGrpc(grpc::Service* service) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    if (service != nullptr) builder.RegisterService(service);
    generic_ = std::make_unique<grpc::AsyncGenericService>();
    queue_ = service == nullptr ? builder.AddCompletionQueue() : nullptr;
    grpc_ = builder.BuildAndStart();
    EXPECT_NE(grpc_, nullptr);
    return "127.0.0.1:" + std::to_string(port);
  }
  void TearDown() override {
    if (grpc_ != nullptr) grpc_->Shutdown(std::chrono::system_clock::now());
    if (queue_ != nullptr) {
      queue_->Shutdown();
      void* tag;
      bool ok;
      while (queue_->Next(&tag, &ok)) {
      }
    }
  }

  static base::Result<transfer::PeerInfo> Resolve(
      const std::string& address, meta::VersionRange versions = OurVersions()) {
    return GrpcPeers(versions).Resolve(address, kTimeout, {});
  }

  FakeManager manager_;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 2};
  std::unique_ptr<NodeServer> server_;
  std::unique_ptr<grpc::AsyncGenericService> generic_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> grpc_;
};

TEST_F(GrpcPeersTest, TellsWhoAnswers) {
  const std::string address =
      StartDaemon({.manager_id = "peer-1", .data_endpoint = "0.0.0.0:9601"});
  const std::string port = address.substr(address.rfind(':'));
  for (const std::string& name : {address, "localhost" + port}) {
    const auto peer = Resolve(name);
    ASSERT_TRUE(peer.ok()) << peer.status().ToString();
    EXPECT_EQ(peer->manager_id, "peer-1");
    EXPECT_EQ(peer->ip, "127.0.0.1");
    EXPECT_EQ(peer->data_port, 9601);
    EXPECT_EQ(peer->api_version, meta::kApiVersion);
  }
}

TEST_F(GrpcPeersTest, AnIpv6AddressComesWithoutBrackets) {
  if (!Listen("[::1]:0").ok()) GTEST_SKIP() << "no IPv6 here";
  const std::string address = StartDaemon(
      {.manager_id = "peer-1", .data_endpoint = "[::]:9601"}, "[::1]:0");
  const auto peer = Resolve(address);
  ASSERT_TRUE(peer.ok()) << peer.status().ToString();
  EXPECT_EQ(peer->ip, "::1");
}

TEST_F(GrpcPeersTest, APeerCannotSendUsElsewhere) {
  const std::string address = StartDaemon(
      {.manager_id = "peer-1", .data_endpoint = "169.254.169.254:80"});
  const auto peer = Resolve(address);
  ASSERT_TRUE(peer.ok()) << peer.status().ToString();
  EXPECT_EQ(peer->ip, "127.0.0.1");
  EXPECT_EQ(peer->data_port, 80);
}

TEST_F(GrpcPeersTest, NewerAndOlderOnesAreNamed) {
  const std::string address = StartDaemon({.manager_id = "peer-1",
                                           .data_endpoint = "127.0.0.1:9601",
                                           .versions = {3, 5}});
  for (const meta::VersionRange ours :
       {meta::VersionRange{1, 2}, meta::VersionRange{6, 7}}) {
    const base::Status status = Resolve(address, ours).status();
    EXPECT_EQ(status,
              base::FailedPreconditionError(
                  "peer " + address + ": the caller speaks API " +
                  std::to_string(ours.min) + " to " + std::to_string(ours.max) +
                  ", this daemon speaks API 3 to 5"));
  }
  const auto peer = Resolve(address, {5, 9});
  ASSERT_TRUE(peer.ok()) << peer.status().ToString();
  EXPECT_EQ(peer->api_version, 5);
}

TEST_F(GrpcPeersTest, ADaemonWithoutDataIsNoUse) {
  const std::string address = StartDaemon({.manager_id = "peer-1"});
  const base::Status status = Resolve(address).status();
  EXPECT_EQ(status.code(), base::Code::kFailedPrecondition);
  EXPECT_NE(status.message().find("serves no data"), std::string::npos);
}

TEST_F(GrpcPeersTest, AServerOfSomethingElseIsNoneOfOurs) {
  const std::string address = StartGrpc(nullptr);
  const base::Status status = Resolve(address).status();
  EXPECT_EQ(status.code(), base::Code::kFailedPrecondition);
  EXPECT_TRUE(status.message().starts_with("peer " + address +
                                           ": it is no daemon of ours"))
      << status.message();
}

TEST_F(GrpcPeersTest, WhatAPeerSaysIsJudged) {
  Liar liar;
  const std::string address = StartGrpc(&liar);
  const auto refused = [&](const auto& change) {
    liar.answer.Clear();
    liar.answer.set_manager_id("peer-1");
    liar.answer.set_api_version(meta::kApiVersion);
    liar.answer.set_api_min_version(meta::kApiMinVersion);
    liar.answer.set_data_endpoint("h:9601");
    change(liar.answer);
    return Resolve(address).status();
  };
  using Answer = v1::VersionGetResponse;
  EXPECT_EQ(refused([](Answer&) {}), base::OkStatus());
  for (const base::Status& status :
       {refused([](Answer& a) { a.set_manager_id(""); }),
        refused([](Answer& a) { a.set_manager_id("../x"); }),
        refused([](Answer& a) { a.set_manager_id(std::string(65, 'a')); }),
        refused([](Answer& a) { a.set_api_version(0); }),
        refused([](Answer& a) { a.set_api_version(-1); }),
        refused([](Answer& a) { a.set_api_min_version(1'000); }),
        refused([](Answer& a) {
          a.set_api_version(int64_t{1} << 40);
          a.set_api_min_version(int64_t{1} << 40);
        }),
        // Served us although it speaks none of our versions.
        refused([](Answer& a) {
          a.set_api_version(1'001);
          a.set_api_min_version(1'000);
        }),
        refused([](Answer& a) { a.set_data_endpoint("h"); }),
        refused([](Answer& a) { a.set_data_endpoint("h:0"); }),
        refused([](Answer& a) { a.set_data_endpoint("unix:/x"); }),
        refused(
            [](Answer& a) { a.set_git_commit(std::string(1 << 20, 'x')); })}) {
    EXPECT_EQ(status.code(), base::Code::kFailedPrecondition)
        << status.ToString();
    EXPECT_LT(status.message().size(), 600u);
  }
  liar.status = {grpc::StatusCode::INTERNAL, std::string(5'000, '\x01')};
  EXPECT_LT(Resolve(address).status().message().size(), 1'300u);
}

TEST_F(GrpcPeersTest, WhoIsNotThereIsUnavailable) {
  auto listener = Listen("127.0.0.1:0");
  ASSERT_TRUE(listener.ok());
  const std::string address = listener->address;
  listener->fd.Reset();
  const base::Status status = Resolve(address).status();
  EXPECT_EQ(status.code(), base::Code::kUnavailable) << status.ToString();
  EXPECT_TRUE(status.message().starts_with("cannot reach peer " + address));
  EXPECT_EQ(Resolve("no-such-host.invalid:9500").status().code(),
            base::Code::kUnavailable);
}

TEST_F(GrpcPeersTest, OneThatNeverAnswersTakesNoLongerThanTheTimeout) {
  const auto listener = Listen("127.0.0.1:0");
  ASSERT_TRUE(listener.ok());
  const Clock::time_point start = Clock::now();
  const base::Status status =
      GrpcPeers().Resolve(listener->address, milliseconds(500), {}).status();
  EXPECT_EQ(status.code(), base::Code::kUnavailable) << status.ToString();
  EXPECT_LT(Clock::now() - start, milliseconds(5'000));
}

TEST_F(GrpcPeersTest, StopsWhenAsked) {
  const auto listener = Listen("127.0.0.1:0");
  ASSERT_TRUE(listener.ok());
  std::stop_source source;
  const std::jthread stopper([&] {
    std::this_thread::sleep_for(milliseconds(100));
    source.request_stop();
  });
  const Clock::time_point start = Clock::now();
  EXPECT_EQ(
      GrpcPeers()
          .Resolve(listener->address, milliseconds(60'000), source.get_token())
          .status()
          .code(),
      base::Code::kCancelled);
  EXPECT_LT(Clock::now() - start, milliseconds(10'000));
  EXPECT_EQ(GrpcPeers()
                .Resolve(listener->address, kTimeout, source.get_token())
                .status()
                .code(),
            base::Code::kCancelled);
}

TEST_F(GrpcPeersTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"", "h", ":9500", "unix:/run/bim.sock", "h:0"}) {
    EXPECT_EQ(Resolve(address).status().code(), base::Code::kInvalidArgument)
        << address;
  }
}

}  // namespace
}  // namespace bim::api
