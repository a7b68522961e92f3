#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pkg/api/client.h"
#include "pkg/api/listener.h"
#include "pkg/api/node_server.h"
#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

using std::chrono::milliseconds;

class LimitServiceTest : public testing::Test {
 protected:
  ~LimitServiceTest() override {
    client_.reset();
    server_.reset();
    pool_.Shutdown();
  }

  void Start() {
    auto listener = Listen("127.0.0.1:0");
    ASSERT_TRUE(listener.ok()) << listener.status().ToString();
    std::vector<base::UniqueFd> listeners;
    listeners.push_back(std::move(listener->fd));
    auto server =
        NodeServer::Start({}, manager_, loop_, pool_, std::move(listeners));
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    auto client = Client::Connect(listener->address, milliseconds(5000));
    ASSERT_TRUE(client.ok()) << client.status().ToString();
    client_ = *std::move(client);
  }

  template <typename Stub, typename Method, typename Request, typename Response>
  base::Status Call(Stub& stub, Method method, const Request& request,
                    Response* response) {
    grpc::ClientContext context;
    Client::PrepareContext(context, milliseconds(10'000));
    return FromGrpc((stub.*method)(&context, request, response));
  }

  FakeManager manager_;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 2};
  std::unique_ptr<NodeServer> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(LimitServiceTest, LimitsAreReadAndSetFieldByField) {
  manager_.limits = {.download_rate = 1 << 20, .transfers = 3};
  Start();
  v1::GetLimitsResponse got;
  ASSERT_TRUE(Call(client_->limits(), &v1::LimitService::Stub::Get,
                   v1::GetLimitsRequest(), &got)
                  .ok());
  EXPECT_EQ(got.limits().download_rate(), 1u << 20);
  EXPECT_TRUE(got.limits().has_peer_rate());
  EXPECT_EQ(got.limits().transfers(), 3u);

  v1::SetLimitsRequest set;
  set.mutable_limits()->set_download_rate(0);
  set.mutable_limits()->set_transfers_per_disk(2);
  v1::SetLimitsResponse answer;
  ASSERT_TRUE(
      Call(client_->limits(), &v1::LimitService::Stub::Set, set, &answer).ok());
  EXPECT_EQ(manager_.limits,
            (manager::Limits{.transfers = 3, .transfers_per_disk = 2}));
  EXPECT_EQ(answer.limits().transfers(), 3u);
  EXPECT_EQ(answer.limits().transfers_per_disk(), 2u);
  EXPECT_EQ(answer.limits().download_rate(), 0u);

  manager_.fail = base::InvalidArgumentError("transfers: expected 1 to 256");
  EXPECT_EQ(Call(client_->limits(), &v1::LimitService::Stub::Set, set, &answer),
            manager_.fail);
}

TEST_F(LimitServiceTest, ConcurrentSettersOfLimitsDoNotUndoEachOther) {
  Start();
  std::vector<std::thread> setters;
  for (int which = 0; which < 2; ++which) {
    setters.emplace_back([&, which] {
      for (uint32_t i = 1; i <= 100; ++i) {
        v1::SetLimitsRequest set;
        if (which == 0) {
          set.mutable_limits()->set_transfers(i);
        } else {
          set.mutable_limits()->set_transfers_per_disk(i);
        }
        v1::SetLimitsResponse answer;
        EXPECT_TRUE(
            Call(client_->limits(), &v1::LimitService::Stub::Set, set, &answer)
                .ok());
        EXPECT_EQ(which == 0 ? answer.limits().transfers()
                             : answer.limits().transfers_per_disk(),
                  i);
      }
    });
  }
  for (std::thread& setter : setters) setter.join();
  EXPECT_EQ(manager_.limits,
            (manager::Limits{.transfers = 100, .transfers_per_disk = 100}));
}

}  // namespace
}  // namespace bim::api
