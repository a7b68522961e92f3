#include "pkg/exec/event_loop.h"

#include <pthread.h>

#include <boost/asio/post.hpp>
#include <utility>

namespace bim::exec {

EventLoop::EventLoop()
    : guard_(boost::asio::make_work_guard(context_)), thread_([this] {
        pthread_setname_np(pthread_self(), "bim-loop");
        context_.run();
      }) {}

EventLoop::~EventLoop() {
  guard_.reset();
  context_.stop();
  thread_.join();
}

void EventLoop::Post(std::function<void()> work) {
  boost::asio::post(context_, std::move(work));
}

bool EventLoop::InLoop() const {
  return std::this_thread::get_id() == thread_.get_id();
}

}  // namespace bim::exec
