// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace saves_some_template {

struct Sink : valid::Sink {
#ifdef MISTAKE
    template <class T>
    void save(const sluice::Query&, const std::optional<T>&) {}
#else
    template <class T>
    void save(const sluice::Query&, const T&) {}
#endif
};

}  // namespace saves_some_template

// A save function that is a template can save the records of its pipeline.
void sink_saves_some_template(boost::asio::io_context& context) {
    saves_some_template::Sink sink;
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
