// The real server and the real gRPC client over loopback and a unix socket,
// with a fake manager below.
#include "pkg/api/node_server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "grpc/health/v1/health.pb.h"
#include "pkg/api/client.h"
#include "pkg/api/listener.h"
#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Waits for a state, with a deadline.
bool Eventually(const std::function<bool()>& holds,
                milliseconds limit = milliseconds(10'000)) {
  const Clock::time_point deadline = Clock::now() + limit;
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

class NodeServerTest : public testing::Test {
 protected:
  NodeServerTest() {
    char name[] = "/tmp/bim-node-XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~NodeServerTest() override {
    manager_.OpenGate();
    client_.reset();
    server_.reset();
    pool_.Shutdown();
    std::filesystem::remove_all(directory_);
  }

  void Start(NodeServer::Options options = {}) {
    options.manager_id = "me";
    options.data_endpoint = "127.0.0.1:9501";
    std::vector<base::UniqueFd> listeners;
    for (const std::string& address :
         {std::string("127.0.0.1:0"), "unix:" + directory_ + "/sock"}) {
      auto listener = Listen(address);
      ASSERT_TRUE(listener.ok()) << listener.status().ToString();
      addresses_.push_back(listener->address);
      listeners.push_back(std::move(listener->fd));
    }
    auto server = NodeServer::Start(options, manager_, loop_, pool_,
                                    std::move(listeners));
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    client_ = Connect(addresses_[0]);
  }

  std::unique_ptr<Client> Connect(const std::string& address) {
    auto client = Client::Connect(address, milliseconds(5000));
    EXPECT_TRUE(client.ok()) << client.status().ToString();
    return client.ok() ? *std::move(client) : nullptr;
  }

  // One call with a deadline; `method` as in &Stub::Get.
  template <typename Stub, typename Method, typename Request, typename Response>
  base::Status Call(Stub& stub, Method method, const Request& request,
                    Response* response) {
    grpc::ClientContext context;
    Client::PrepareContext(context, milliseconds(10'000));
    return FromGrpc((stub.*method)(&context, request, response));
  }

  std::string directory_;
  std::vector<std::string> addresses_;  // TCP, unix
  FakeManager manager_;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 4};
  std::unique_ptr<NodeServer> server_;
  std::unique_ptr<Client> client_;
};

using v1::DiskService;
using v1::ImageService;
using v1::VersionService;

TEST_F(NodeServerTest, VersionGetOverTcpAndUnix) {
  Start();
  for (const std::string& address : addresses_) {
    const auto client = Connect(address);
    ASSERT_NE(client, nullptr);
    v1::VersionGetResponse response;
    ASSERT_TRUE(Call(client->version(), &VersionService::Stub::VersionGet,
                     v1::VersionGetRequest(), &response)
                    .ok());
    EXPECT_EQ(response.version(), meta::Version());
    EXPECT_EQ(response.api_version(), meta::kApiVersion);
    EXPECT_EQ(response.api_min_version(), meta::kApiMinVersion);
    EXPECT_EQ(response.disk_format_version(), meta::kDiskFormatVersion);
    EXPECT_EQ(response.manager_id(), "me");
    EXPECT_EQ(response.data_endpoint(), "127.0.0.1:9501");
  }
}

TEST_F(NodeServerTest, NegotiatesOnEveryCall) {
  Start({.versions = {3, 4}});
  const std::string refusal =
      "the caller speaks API 1 to 2, this daemon speaks API 3 to 4";
  const auto try_all =
      [&](const std::function<void(grpc::ClientContext&)>& prepare) {
        std::vector<grpc::Status> results;
        const auto one = [&](const auto& call) {
          grpc::ClientContext context;
          context.set_deadline(std::chrono::system_clock::now() +
                               std::chrono::seconds(10));
          prepare(context);
          results.push_back(call(&context));
        };
        const auto unary = [&](auto& stub, auto method, auto request,
                               auto response) {
          one([&](grpc::ClientContext* context) {
            return (stub.*method)(context, request, &response);
          });
        };
        unary(client_->version(), &VersionService::Stub::VersionGet,
              v1::VersionGetRequest(), v1::VersionGetResponse());
        unary(client_->disks(), &DiskService::Stub::List,
              v1::ListDisksRequest(), v1::ListDisksResponse());
        unary(client_->disks(), &DiskService::Stub::Add, v1::AddDiskRequest(),
              v1::AddDiskResponse());
        unary(client_->disks(), &DiskService::Stub::Remove,
              v1::RemoveDiskRequest(), v1::RemoveDiskResponse());
        unary(client_->images(), &ImageService::Stub::Ensure,
              v1::EnsureRequest(), v1::EnsureResponse());
        unary(client_->images(), &ImageService::Stub::Get, v1::GetRequest(),
              v1::GetResponse());
        unary(client_->images(), &ImageService::Stub::List, v1::ListRequest(),
              v1::ListResponse());
        unary(client_->images(), &ImageService::Stub::Remove,
              v1::RemoveRequest(), v1::RemoveResponse());
        unary(client_->limits(), &v1::LimitService::Stub::Get,
              v1::GetLimitsRequest(), v1::GetLimitsResponse());
        unary(client_->limits(), &v1::LimitService::Stub::Set,
              v1::SetLimitsRequest(), v1::SetLimitsResponse());
        one([&](grpc::ClientContext* context) {
          auto reader = client_->images().Watch(context, v1::WatchRequest());
          v1::WatchResponse response;
          EXPECT_FALSE(reader->Read(&response));
          return reader->Finish();
        });
        one([&](grpc::ClientContext* context) {
          v1::VerifyRequest request;
          request.set_name("a");
          auto reader = client_->images().Verify(context, request);
          v1::VerifyResponse response;
          EXPECT_FALSE(reader->Read(&response));
          return reader->Finish();
        });
        return results;
      };
  for (const grpc::Status& status : try_all([](grpc::ClientContext& context) {
         Client::PrepareContext(context, milliseconds(0), {1, 2});
       })) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(status.error_message(), refusal);
  }
  for (const std::vector<const char*>& texts :
       {std::vector<const char*>{"x"}, {"-4"}, {"4", "3"}, {""}}) {
    for (const grpc::Status& status :
         try_all([&](grpc::ClientContext& context) {
           for (const char* text : texts) {
             context.AddMetadata("bim-api-version", text);
           }
         })) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << texts[0] << " " << status.error_message();
    }
  }
  EXPECT_EQ(manager_.verifications, 0);
}

TEST_F(NodeServerTest, NegotiatesInVersionGet) {
  Start({.versions = {3, 4}});
  const auto get = [&](int64_t version, int64_t min_version) {
    v1::VersionGetRequest request;
    request.set_api_version(version);
    request.set_api_min_version(min_version);
    v1::VersionGetResponse response;
    grpc::ClientContext context;
    return FromGrpc(
        client_->version().VersionGet(&context, request, &response));
  };
  EXPECT_TRUE(get(0, 0).ok());
  EXPECT_TRUE(get(5, 4).ok());
  EXPECT_EQ(get(2, 1), base::FailedPreconditionError(
                           "the caller speaks API 1 to 2, this daemon speaks "
                           "API 3 to 4"));
  EXPECT_EQ(get(0, 5).code(), base::Code::kFailedPrecondition);
  EXPECT_EQ(get(-1, 0).code(), base::Code::kInvalidArgument);
  EXPECT_EQ(get(3, 4).code(), base::Code::kInvalidArgument);
}

TEST_F(NodeServerTest, Disks) {
  Start();
  v1::ListDisksResponse list;
  ASSERT_TRUE(Call(client_->disks(), &DiskService::Stub::List,
                   v1::ListDisksRequest(), &list)
                  .ok());
  ASSERT_EQ(list.disks_size(), 2);
  EXPECT_EQ(list.disks(1).state(), "missing");

  v1::AddDiskRequest add;
  v1::AddDiskResponse added;
  EXPECT_EQ(Call(client_->disks(), &DiskService::Stub::Add, add, &added),
            base::InvalidArgumentError("path is missing"));
  add.set_path("/disks/3");
  add.set_uuid("d3");
  add.set_init(true);
  ASSERT_TRUE(
      Call(client_->disks(), &DiskService::Stub::Add, add, &added).ok());
  EXPECT_EQ(added.disk().path(), "/disks/3");
  EXPECT_EQ(manager_.disk_uuid, "d3");
  EXPECT_TRUE(manager_.flag);

  v1::RemoveDiskRequest remove;
  v1::RemoveDiskResponse removed;
  EXPECT_EQ(
      Call(client_->disks(), &DiskService::Stub::Remove, remove, &removed),
      base::InvalidArgumentError("disk is missing"));
  remove.set_disk("/disks/3");
  EXPECT_TRUE(
      Call(client_->disks(), &DiskService::Stub::Remove, remove, &removed)
          .ok());
  EXPECT_EQ(manager_.disk, "/disks/3");
  EXPECT_FALSE(manager_.flag);
}

TEST_F(NodeServerTest, EnsureGetRemove) {
  Start();
  v1::EnsureRequest ensure;
  v1::EnsureResponse ensured;
  ensure.mutable_spec()->set_name("a");
  EXPECT_EQ(
      Call(client_->images(), &ImageService::Stub::Ensure, ensure, &ensured),
      base::InvalidArgumentError(
          "source.url, source.peers and source.upload are missing: expected "
          "http://, https:// or file://, other daemons' host:port, or an "
          "upload"));
  ensure.mutable_spec()->mutable_source()->set_url("http://h/a");
  ASSERT_TRUE(
      Call(client_->images(), &ImageService::Stub::Ensure, ensure, &ensured)
          .ok());
  EXPECT_TRUE(ensured.created());
  EXPECT_EQ(ensured.image().spec().name(), "a");
  EXPECT_EQ(manager_.ensured.disks, std::vector<std::string>{"all"});

  v1::GetRequest get;
  v1::GetResponse got;
  EXPECT_EQ(Call(client_->images(), &ImageService::Stub::Get, get, &got),
            base::InvalidArgumentError("name is missing"));
  get.set_name("a");
  EXPECT_EQ(Call(client_->images(), &ImageService::Stub::Get, get, &got),
            base::NotFoundError("cannot find image a"));
  manager_.Put("a");
  ASSERT_TRUE(
      Call(client_->images(), &ImageService::Stub::Get, get, &got).ok());
  EXPECT_EQ(got.image().state(), "ready");

  v1::RemoveRequest remove;
  v1::RemoveResponse removed;
  EXPECT_EQ(
      Call(client_->images(), &ImageService::Stub::Remove, remove, &removed),
      base::InvalidArgumentError("name is missing"));
  remove.set_name("a");
  remove.set_uuid("u");
  remove.set_force(true);
  EXPECT_TRUE(
      Call(client_->images(), &ImageService::Stub::Remove, remove, &removed)
          .ok());
  EXPECT_EQ(manager_.uuid, "u");
  EXPECT_TRUE(manager_.flag);
}

TEST_F(NodeServerTest, PassesErrorsOn) {
  Start();
  for (int code = 2; code <= 15; ++code) {
    const base::Status fail(static_cast<base::Code>(code), "the reason");
    manager_.fail = fail;
    v1::EnsureRequest ensure;
    ensure.mutable_spec()->set_name("a");
    ensure.mutable_spec()->mutable_source()->set_url("http://h/a");
    v1::EnsureResponse ensured;
    EXPECT_EQ(
        Call(client_->images(), &ImageService::Stub::Ensure, ensure, &ensured),
        fail);
    v1::ListResponse list;
    EXPECT_EQ(Call(client_->images(), &ImageService::Stub::List,
                   v1::ListRequest(), &list),
              fail);
    v1::VerifyRequest verify;
    verify.set_name("a");
    grpc::ClientContext context;
    auto reader = client_->images().Verify(&context, verify);
    v1::VerifyResponse response;
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_EQ(FromGrpc(reader->Finish()), fail);
  }
}

TEST_F(NodeServerTest, ListsPagesThatFitIntoAMessage) {
  manager_.message_bytes = 64 << 10;
  for (int i = 0; i < 150; ++i) manager_.Put("i" + std::to_string(1000 + i));
  Start();
  v1::ListRequest request;
  request.set_page_size(1001);
  v1::ListResponse page;
  EXPECT_EQ(
      Call(client_->images(), &ImageService::Stub::List, request, &page).code(),
      base::Code::kInvalidArgument);
  request.set_page_size(2);
  ASSERT_TRUE(
      Call(client_->images(), &ImageService::Stub::List, request, &page).ok());
  EXPECT_EQ(page.images_size(), 2);
  request.set_page_size(0);
  request.clear_page_token();
  std::vector<std::string> names;
  do {
    ASSERT_TRUE(
        Call(client_->images(), &ImageService::Stub::List, request, &page)
            .ok());
    for (const v1::Image& image : page.images()) {
      names.push_back(image.spec().name());
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(names.size(), 150u);
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
}

TEST_F(NodeServerTest, WatchSendsSnapshotChangesAndResumes) {
  for (int i = 0; i < 100; ++i) manager_.Put("i" + std::to_string(100 + i));
  Start();
  std::string token;
  {
    grpc::ClientContext context;
    Client::PrepareContext(context, milliseconds(20'000));
    auto reader = client_->images().Watch(&context, v1::WatchRequest());
    v1::WatchResponse response;
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.type(), v1::WatchResponse::TYPE_SNAPSHOT_BEGIN);
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(reader->Read(&response));
      EXPECT_EQ(response.type(), v1::WatchResponse::TYPE_IMAGE);
      EXPECT_EQ(response.image().spec().name(), "i" + std::to_string(100 + i));
    }
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.type(), v1::WatchResponse::TYPE_SNAPSHOT_END);
    manager_.Put("new", manager::CopyState::kFailed);
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.image().spec().name(), "new");
    EXPECT_EQ(response.image().state(), "failed");
    token = response.resume_token();
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([&] { return manager_.subscriptions == 0; }));
  EXPECT_LE(manager_.largest_batch, 64u);
  manager_.Put("later");
  grpc::ClientContext context;
  Client::PrepareContext(context, milliseconds(20'000));
  v1::WatchRequest request;
  request.set_resume_token(token);
  auto reader = client_->images().Watch(&context, request);
  v1::WatchResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.type(), v1::WatchResponse::TYPE_IMAGE);
  EXPECT_EQ(response.image().spec().name(), "later");
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  (void)reader->Finish();
}

TEST_F(NodeServerTest, ASlowReaderCostsABoundedBacklog) {
  manager_.message_bytes = 16 << 10;
  Start();
  grpc::ClientContext context;
  Client::PrepareContext(context, milliseconds(60'000));
  auto reader = client_->images().Watch(&context, v1::WatchRequest());
  v1::WatchResponse response;
  ASSERT_TRUE(reader->Read(&response));
  ASSERT_TRUE(reader->Read(&response));
  ASSERT_EQ(response.type(), v1::WatchResponse::TYPE_SNAPSHOT_END);
  // Nothing is read from here on, until the stream is stuck.
  int revisions = 0;
  const auto change = [&](int times) {
    for (int i = 0; i < times; ++i) {
      manager_.Put("i" + std::to_string(revisions++ % 10));
    }
  };
  ASSERT_TRUE(Eventually(
      [&] {
        const int before = manager_.next_events;
        change(10);
        std::this_thread::sleep_for(milliseconds(200));
        return manager_.next_events == before;
      },
      milliseconds(30'000)));
  const int asked = manager_.next_events;
  const int given = manager_.events_given;
  change(10'000);  // 160 MB of states
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(manager_.next_events, asked);
  EXPECT_EQ(manager_.events_given, given);
  EXPECT_LT(given, 1000);
  // The reader wakes up and ends at the newest state.
  uint64_t revision = 0;
  int read = 0;
  const uint64_t newest = static_cast<uint64_t>(revisions);
  while (revision < newest && reader->Read(&response)) {
    EXPECT_GT(response.image().revision(), revision);
    revision = response.image().revision();
    ++read;
  }
  EXPECT_EQ(revision, newest);
  EXPECT_LE(read, given + 10);
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  (void)reader->Finish();
}

TEST_F(NodeServerTest, NoWakeUpIsLost) {
  Start();
  grpc::ClientContext context;
  Client::PrepareContext(context, milliseconds(60'000));
  auto reader = client_->images().Watch(&context, v1::WatchRequest());
  v1::WatchResponse response;
  std::thread changer([&] {
    for (int i = 0; i < 3000; ++i) manager_.Put("i" + std::to_string(i % 7));
  });
  uint64_t revision = 0;
  while (revision < 3000 && reader->Read(&response)) {
    revision = std::max(revision, response.image().revision());
  }
  changer.join();
  EXPECT_EQ(revision, 3000u);
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  (void)reader->Finish();
}

TEST_F(NodeServerTest, ManyWatchersComeAndGo) {
  manager_.Put("a");
  Start();
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    while (!stop) manager_.Put("a");
  });
  std::vector<std::thread> watchers;
  for (int t = 0; t < 4; ++t) {
    watchers.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        grpc::ClientContext context;
        Client::PrepareContext(context, milliseconds(60'000));
        auto reader = client_->images().Watch(&context, v1::WatchRequest());
        v1::WatchResponse response;
        for (int n = 0; n < (i + t) % 5; ++n) reader->Read(&response);
        context.TryCancel();
        while (reader->Read(&response)) {
        }
        (void)reader->Finish();
      }
    });
  }
  for (std::thread& watcher : watchers) watcher.join();
  EXPECT_TRUE(Eventually([&] { return manager_.subscriptions == 0; }));
  stop = true;
  changer.join();
}

TEST_F(NodeServerTest, LimitsStreams) {
  Start({.max_streams = 2});
  grpc::ClientContext contexts[3];
  std::unique_ptr<grpc::ClientReader<v1::WatchResponse>> readers[3];
  v1::WatchResponse response;
  for (int i = 0; i < 2; ++i) {
    readers[i] = client_->images().Watch(&contexts[i], v1::WatchRequest());
    ASSERT_TRUE(readers[i]->Read(&response));
  }
  readers[2] = client_->images().Watch(&contexts[2], v1::WatchRequest());
  EXPECT_FALSE(readers[2]->Read(&response));
  EXPECT_EQ(readers[2]->Finish().error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (int i = 0; i < 2; ++i) {
    contexts[i].TryCancel();
    while (readers[i]->Read(&response)) {
    }
    (void)readers[i]->Finish();
  }
}

TEST_F(NodeServerTest, VerifySendsProgressAndTheEnd) {
  manager_.Put("a");
  manager_.SetProgress({.verified_bytes = 0, .total_bytes = 1000});
  Start();
  v1::VerifyRequest request;
  request.set_name("a");
  request.add_disks("/disks/1");
  grpc::ClientContext context;
  Client::PrepareContext(context, milliseconds(20'000));
  auto reader = client_->images().Verify(&context, request);
  v1::VerifyResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.total_bytes(), 1000u);
  EXPECT_FALSE(response.done());
  EXPECT_EQ(manager_.verify_disks, std::vector<std::string>{"/disks/1"});
  // Many steps in a moment make few messages.
  std::thread worker([&] {
    for (uint64_t i = 1; i <= 500; ++i) {
      manager_.SetProgress({.verified_bytes = 2 * i, .total_bytes = 1000});
      std::this_thread::sleep_for(milliseconds(1));
    }
    manager_.SetProgress({.verified_bytes = 1000,
                          .total_bytes = 1000,
                          .done = true,
                          .ok = true,
                          .message = "fine"});
  });
  int messages = 0;
  uint64_t bytes = 0;
  while (reader->Read(&response)) {
    ++messages;
    EXPECT_GE(response.verified_bytes(), bytes);
    bytes = response.verified_bytes();
  }
  worker.join();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(response.done());
  EXPECT_TRUE(response.ok());
  EXPECT_EQ(response.message(), "fine");
  EXPECT_EQ(response.image().spec().name(), "a");
  EXPECT_GE(messages, 2);
  EXPECT_LE(messages, 30);
  EXPECT_TRUE(Eventually([&] { return manager_.subscriptions == 0; }));
}

TEST_F(NodeServerTest, VerifyOutlivesItsCaller) {
  manager_.Put("a");
  manager_.SetProgress({.verified_bytes = 1, .total_bytes = 1000});
  Start();
  v1::VerifyRequest request;
  request.set_name("a");
  {
    grpc::ClientContext context;
    auto reader = client_->images().Verify(&context, request);
    v1::VerifyResponse response;
    ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(Eventually([&] { return manager_.subscriptions == 0; }));
  manager_.SetProgress({.verified_bytes = 1000,
                        .total_bytes = 1000,
                        .done = true,
                        .ok = false,
                        .message = "differs"});
  grpc::ClientContext context;
  auto reader = client_->images().Verify(&context, request);
  v1::VerifyResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.done());
  EXPECT_FALSE(response.ok());
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(NodeServerTest, LimitsBlockingCalls) {
  Start({.max_blocking_calls = 1});
  manager_.CloseGate();
  v1::RemoveRequest request;
  request.set_name("a");
  base::Status first;
  std::thread caller([&] {
    v1::RemoveResponse response;
    first = Call(client_->images(), &ImageService::Stub::Remove, request,
                 &response);
  });
  ASSERT_TRUE(Eventually([&] { return manager_.blocked == 1; }));
  v1::RemoveResponse response;
  EXPECT_EQ(
      Call(client_->images(), &ImageService::Stub::Remove, request, &response)
          .code(),
      base::Code::kResourceExhausted);
  v1::ListResponse list;  // what does not block is served on
  EXPECT_TRUE(Call(client_->images(), &ImageService::Stub::List,
                   v1::ListRequest(), &list)
                  .ok());
  manager_.OpenGate();
  caller.join();
  EXPECT_TRUE(first.ok()) << first.ToString();
}

TEST_F(NodeServerTest, ShutdownEndsStreamsAndStuckCallsInTime) {
  manager_.message_bytes = 64 << 10;
  manager_.Put("a");
  Start();
  grpc::ClientContext polite_context, stuck_context;
  auto polite = client_->images().Watch(&polite_context, v1::WatchRequest());
  auto stuck = client_->images().Watch(&stuck_context, v1::WatchRequest());
  v1::WatchResponse response;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(polite->Read(&response));
  ASSERT_TRUE(stuck->Read(&response));
  manager_.CloseGate();
  base::Status blocked;
  std::thread caller([&] {
    v1::RemoveRequest request;
    request.set_name("a");
    v1::RemoveResponse removed;
    blocked =
        Call(client_->images(), &ImageService::Stub::Remove, request, &removed);
  });
  ASSERT_TRUE(Eventually([&] { return manager_.blocked == 1; }));
  const Clock::time_point start = Clock::now();
  server_->Shutdown(milliseconds(300));
  EXPECT_LT(Clock::now() - start, milliseconds(3000));
  server_->Shutdown(milliseconds(300));  // again: nothing
  caller.join();
  EXPECT_EQ(blocked.code(), base::Code::kUnavailable) << blocked.ToString();
  while (polite->Read(&response)) {
  }
  const grpc::Status status = polite->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the daemon is stopping");
  while (stuck->Read(&response)) {
  }
  EXPECT_FALSE(stuck->Finish().ok());
  EXPECT_EQ(manager_.subscriptions, 0);
  EXPECT_EQ(manager_.blocked, 1);  // the work itself goes on
  EXPECT_FALSE(Client::Connect(addresses_[0], milliseconds(500)).ok());
}

TEST_F(NodeServerTest, ShutdownIsBoundedForAReaderThatNeverReads) {
  manager_.message_bytes = 256 << 10;
  for (int i = 0; i < 20; ++i) manager_.Put("i" + std::to_string(i));
  Start();
  grpc::ClientContext context;
  auto reader = client_->images().Watch(&context, v1::WatchRequest());
  ASSERT_TRUE(Eventually([&] { return manager_.events_given > 0; }));
  const Clock::time_point start = Clock::now();
  server_->Shutdown(milliseconds(200));
  EXPECT_LT(Clock::now() - start, milliseconds(3000));
  v1::WatchResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(NodeServerTest, StopAcceptingGivesTheSocketsToTheNext) {
  Start();
  std::vector<base::UniqueFd> listeners = server_->StopAccepting();
  ASSERT_EQ(listeners.size(), 2u);
  v1::ListResponse list;  // open connections are served on
  EXPECT_TRUE(Call(client_->images(), &ImageService::Stub::List,
                   v1::ListRequest(), &list)
                  .ok());
  auto next = NodeServer::Start({.manager_id = "next"}, manager_, loop_, pool_,
                                std::move(listeners));
  ASSERT_TRUE(next.ok());
  for (const std::string& address : addresses_) {
    const auto client = Connect(address);
    v1::VersionGetResponse response;
    ASSERT_TRUE(Call(client->version(), &VersionService::Stub::VersionGet,
                     v1::VersionGetRequest(), &response)
                    .ok());
    EXPECT_EQ(response.manager_id(), "next");
  }
}

TEST_F(NodeServerTest, RefusesLargeMessages) {
  Start();
  v1::EnsureRequest request;
  request.mutable_spec()->set_name(std::string(5 << 20, 'x'));
  v1::EnsureResponse response;
  EXPECT_EQ(
      Call(client_->images(), &ImageService::Stub::Ensure, request, &response)
          .code(),
      base::Code::kResourceExhausted);
}

TEST_F(NodeServerTest, TwoHundredConnectionsLeaveNothingBehind) {
  Start();
  const auto connect_once = [&](int i) {
    const auto client = Connect(addresses_[i % 2]);
    v1::ListDisksResponse response;
    ASSERT_TRUE(Call(client->disks(), &DiskService::Stub::List,
                     v1::ListDisksRequest(), &response)
                    .ok());
  };
  for (int i = 0; i < 10; ++i) connect_once(i);
  size_t before = 0;
  Eventually([&] {
    const size_t now = OpenDescriptors();
    std::this_thread::sleep_for(milliseconds(100));
    return std::exchange(before, now) == now;
  });
  for (int i = 0; i < 200; ++i) connect_once(i);
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before; }))
      << before << " -> " << OpenDescriptors();
}

TEST_F(NodeServerTest, LongUnixPathIsReached) {
  const std::string deep = directory_ + "/" + std::string(120, 'd');
  std::filesystem::create_directory(deep);
  auto listener = Listen("unix:" + deep + "/sock");
  ASSERT_TRUE(listener.ok());
  std::vector<base::UniqueFd> listeners;
  listeners.push_back(std::move(listener->fd));
  auto server =
      NodeServer::Start({}, manager_, loop_, pool_, std::move(listeners));
  ASSERT_TRUE(server.ok());
  const auto client = Connect("unix:" + deep + "/sock");
  ASSERT_NE(client, nullptr);
  v1::ListDisksResponse response;
  EXPECT_TRUE(Call(client->disks(), &DiskService::Stub::List,
                   v1::ListDisksRequest(), &response)
                  .ok());
}

TEST(Client, SaysWhyItCannotConnect) {
  std::string address;
  {
    const auto listener = Listen("127.0.0.1:0");
    ASSERT_TRUE(listener.ok());
    address = listener->address;
  }
  EXPECT_EQ(Client::Connect(address, milliseconds(1000)).status(),
            base::UnavailableError("cannot reach the daemon at " + address +
                                   ": Connection refused: is it running?"));
  EXPECT_EQ(
      Client::Connect("unix:/nonexistent/sock", milliseconds(1000)).status(),
      base::UnavailableError("cannot reach the daemon at "
                             "unix:/nonexistent/sock: No such file or "
                             "directory: is it running?"));
  EXPECT_EQ(Client::Connect("nonsense", milliseconds(1000)).status().code(),
            base::Code::kInvalidArgument);
  const auto silent = Listen("127.0.0.1:0");  // accepts by its queue only
  ASSERT_TRUE(silent.ok());
  const Clock::time_point start = Clock::now();
  EXPECT_EQ(Client::Connect(silent->address, milliseconds(300)).status().code(),
            base::Code::kUnavailable);
  EXPECT_LT(Clock::now() - start, milliseconds(3000));
}

// Reflection, by hand: the messages of grpc.reflection.v1alpha are not in
// Debian's headers as a proto, and their two fields are easily written.
std::string Field(int number, const std::string& bytes) {
  std::string text(1, static_cast<char>(number << 3 | 2));
  text += static_cast<char>(bytes.size());  // under 128
  return text + bytes;
}

std::string Reflect(const std::shared_ptr<grpc::Channel>& channel,
                    const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(10));
  void* tag = nullptr;
  bool ok = false;
  const auto next = [&] { return queue.Next(&tag, &ok) && ok; };
  auto stream = stub.PrepareCall(
      &context,
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  stream->StartCall(nullptr);
  EXPECT_TRUE(next());
  const grpc::Slice slice(request);
  stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  EXPECT_TRUE(next());
  grpc::ByteBuffer answer;
  stream->Read(&answer, nullptr);
  EXPECT_TRUE(next());
  grpc::Slice whole;
  EXPECT_TRUE(answer.DumpToSingleSlice(&whole).ok());
  context.TryCancel();
  grpc::Status status;
  stream->Finish(&status, nullptr);
  next();
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return std::string(reinterpret_cast<const char*>(whole.begin()),
                     whole.size());
}

TEST_F(NodeServerTest, ReflectionKnowsAllServicesAndHealth) {
  Start();
  const std::string services = Reflect(client_->channel(), Field(7, "*"));
  for (const char* name :
       {"bim.v1.VersionService", "bim.v1.DiskService", "bim.v1.ImageService",
        "bim.v1.LimitService", "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection"}) {
    EXPECT_NE(services.find(name), std::string::npos) << name;
    // file_containing_symbol: the descriptor, so that methods can be listed.
    const std::string file = Reflect(client_->channel(), Field(4, name));
    EXPECT_NE(file.find(".proto"), std::string::npos) << name << ": " << file;
  }
}

TEST_F(NodeServerTest, AnswersHealthChecks) {
  Start();
  grpc::TemplatedGenericStub<grpc::health::v1::HealthCheckRequest,
                             grpc::health::v1::HealthCheckResponse>
      stub(client_->channel());
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                    {}, &queue);
  call->StartCall();
  grpc::health::v1::HealthCheckResponse response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
}

}  // namespace
}  // namespace bim::api
